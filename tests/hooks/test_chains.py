"""``chain()``: several hooks as one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amorsize import HookContext, HookEvent, HookManager, chain
from amorsize.errors import InvalidTypeError

POST = HookEvent.POST_EXECUTE


def measure(context: HookContext) -> float:
    return context.elapsed_time * 2


def report(context: HookContext) -> str:
    return f"{context.metadata['chain']['measure']} s"


def fail(context: HookContext) -> None:
    raise ValueError("broken link")


def test_links_hand_their_values_along(hooks: HookManager) -> None:
    """Under the link's own name, in the metadata that later hooks see too."""
    seen: list[Any] = []
    hooks.register(POST, chain(measure, report))
    hooks.register(POST, lambda context: seen.append(dict(context.metadata["chain"])))
    hooks.trigger(HookContext(POST, elapsed_time=1.5))
    assert seen == [{"measure": 3.0, "report": "3.0 s"}]


@given(lengths=st.integers(1, 8), broken=st.one_of(st.none(), st.integers(0, 7)))
def test_links_run_in_order_up_to_the_first_that_fails(lengths: int, broken: int | None) -> None:
    """One call of the chain, and at most one failure."""
    ran: list[int] = []

    def make(position: int) -> Any:
        def link(context: HookContext) -> int:
            ran.append(position)
            if position == broken:
                raise ValueError(position)
            return position

        return link

    hooks = HookManager()
    context = HookContext(POST)
    hooks.register(POST, chain(*map(make, range(lengths))))
    hooks.trigger(context)
    reached = lengths if broken is None or broken >= lengths else broken
    failed = int(broken is not None and broken < lengths)
    assert ran == list(range(reached + failed))
    assert list(context.metadata["chain"].values()) == list(range(reached))
    assert hooks.get_stats()["call_counts"]["post_execute"] == 1
    assert hooks.get_stats()["error_counts"].get("post_execute", 0) == failed


def test_a_failure_names_its_link(hooks: HookManager, caplog: pytest.LogCaptureFixture) -> None:
    """The log has the error, the chain and the link; hooks after the chain still run."""
    called: list[str] = []
    hooks.register(POST, chain(measure, fail, report))
    hooks.register(POST, lambda _: called.append("after"))
    hooks.trigger(HookContext(POST))
    assert called == ["after"]
    assert "Hook chain(measure, fail, report) failed at post_execute" in caplog.text
    assert "Raised by fail, a link of chain(measure, fail, report)" in caplog.text


def test_links_of_one_name_are_numbered(hooks: HookManager) -> None:
    """Two lambdas, for instance."""
    context = HookContext(POST)
    chain(measure, measure, lambda _: 1, lambda _: 2)(context)
    assert context.metadata["chain"] == {
        "measure": 0.0,
        "measure_2": 0.0,
        "<lambda>": 1,
        "<lambda>_2": 2,
    }


def test_a_chain_with_an_asynchronous_link_is_asynchronous(hooks: HookManager) -> None:
    """Its plain links run on the event loop, between the others."""
    seen: list[Any] = []

    async def fetch(context: HookContext) -> str:
        return "fetched"

    async def fail_later(context: HookContext) -> None:
        raise ValueError

    hooks.register(POST, chain(fetch, measure, lambda ctx: seen.append(ctx.metadata["chain"])))
    hooks.register(POST, chain(fetch, fail_later, seen.append))
    hooks.trigger(HookContext(POST))
    assert hooks.drain()
    assert [{key: each[key] for key in ("fetch", "measure")} for each in seen] == [
        {"fetch": "fetched", "measure": 0.0}
    ]
    assert hooks.get_stats()["error_counts"] == {"post_execute": 1}
    hooks.close()


@pytest.mark.parametrize("links", [(), (None,), (measure, lambda: None)])
def test_what_is_no_hook_is_no_link(links: Any) -> None:
    """It is refused when the chain is made."""
    with pytest.raises(InvalidTypeError, match=r"takes one hook or more|a hook"):
        chain(*links)


def test_chains_of_the_same_links_are_the_same_hook(hooks: HookManager) -> None:
    """Registering twice has no further effect, and either unregisters it."""
    hooks.register(POST, chain(measure, report))
    hooks.register(POST, chain(measure, report))
    assert hooks.get_hook_count() == 1
    assert hooks.unregister(POST, chain(measure, report))
    assert chain(measure) != chain(report)
    assert len({chain(measure), chain(measure)}) == 1
