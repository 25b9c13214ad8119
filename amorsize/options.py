"""The options of a run: the keyword arguments of ``execute()`` and its kin, named and checked once.

Every message says what was given, what is allowed and what to do; nothing has run by then.
"""

from __future__ import annotations

import math
import operator
from functools import partial
from types import CodeType, FunctionType, MethodType

from amorsize.planning.engine import Engine, resolve
from amorsize.workers.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from amorsize.errors import InvalidTypeError, InvalidValueError
    from amorsize.hooks.manager import HookManager

_CO_COROUTINE = 0x80
_COROUTINE_MARK = "_is_coroutine_marker"
"""As ``inspect`` has them; it marks functions from Python 3.12 on."""


class Options(Record):
    """The keyword arguments of a run, checked once; :func:`amorsize.execute` describes each.

    Integers are ``int`` and durations are ``float``. ``optimize()`` has the first five alone.

    Attributes:
        engine: what ``executor=`` stands for; None where the choice is open.
    """

    engine: Engine | None = None
    n_jobs: int | None = None
    chunksize: int | None = None
    sample_size: int = 5
    target_chunk_duration: float = 0.2
    verbose: bool = False
    hooks: HookManager | None = None
    progress: bool = False
    progress_interval: float = 0.0
    return_exceptions: bool = False
    timeout: float | None = None
    item_timeout: float | None = None
    name: str | None = None

    @classmethod
    def checked(
        cls,
        func: Callable[[Any], Any],
        data: Iterable[Any],
        *,
        executor: Any,
        n_jobs: int | None,
        chunksize: int | None,
        sample_size: int,
        target_chunk_duration: float,
        verbose: bool,
        hooks: HookManager | None = None,
        progress: bool = False,
        progress_interval: float = 0.0,
        return_exceptions: bool = False,
        timeout: float | None = None,
        item_timeout: float | None = None,
        name: str | None = None,
    ) -> Options:
        """Refuse bad arguments, before anything runs.

        Anything with ``__index__`` is an integer (those of NumPy too), except a bool.

        Raises:
            InvalidTypeError: an argument has the wrong type.
            InvalidValueError: an argument is out of its range, or the executor has no known name,
                or is ``"dask"`` without a client.
            MissingExtraError: the executor is ``"dask"``, which is not installed.

        >>> Options.checked(abs, [1], executor="thread", n_jobs=2, chunksize=None, sample_size=5,
        ...                 target_chunk_duration=1, verbose=False).target_chunk_duration
        1.0
        """
        _check_function(func)
        _check_data(data)
        options = cls(
            engine=resolve(executor),
            n_jobs=None if n_jobs is None else check_count("n_jobs", n_jobs, "a number of workers"),
            chunksize=(
                None
                if chunksize is None
                else check_count("chunksize", chunksize, "items per chunk")
            ),
            sample_size=check_count("sample_size", sample_size, "the items to try first"),
            target_chunk_duration=check_seconds("target_chunk_duration", target_chunk_duration),
            verbose=check_switch("verbose", verbose),
            hooks=_check_hooks(hooks),
            progress=check_switch("progress", progress),
            progress_interval=check_seconds("progress_interval", progress_interval, zero=True),
            return_exceptions=check_switch("return_exceptions", return_exceptions),
            timeout=_check_limit("timeout", timeout),
            item_timeout=_check_limit("item_timeout", item_timeout),
            name=_check_name(name),
        )
        engine = options.engine
        if item_timeout is not None and engine is not None and engine.external:
            raise _value_error(
                "item_timeout needs workers that can be ended; those of Dask, and of an executor "
                "that you pass, cannot. Give timeout= for the whole run, or executor='process' "
                "(or 'thread')."
            )
        return options


def _check_function(func: Any) -> None:
    if not callable(func):
        raise _type_error(
            f"func is {_shown(func)}, which cannot be called; "
            "give a function that takes one item, then the data."
        )
    if _is_coroutine_function(func):
        raise _type_error(
            f"func is {_shown(func)}, a coroutine function, whose calls only create coroutines; "
            "give a plain function, such as lambda item: asyncio.run(func(item))."
        )


def _check_data(data: Any) -> None:
    # Looks for the methods that iter() needs, without calling it: that may already start something.
    kind = type(data)
    if not hasattr(kind, "__getitem__") and getattr(kind, "__iter__", None) is None:
        raise _type_error(
            f"data is {_shown(data)}, which cannot be iterated; "
            "give a list, a generator or any other iterable of items."
        )


def _check_hooks(hooks: Any) -> HookManager | None:
    if hooks is None:
        return None
    from amorsize.hooks.manager import HookManager

    if not isinstance(hooks, HookManager):
        raise _type_error(f"hooks must be a HookManager or None; got {hooks!r}")
    return hooks


def _check_limit(name: str, value: float | None) -> float | None:
    if value is not None:
        check_seconds(name, value)
    return value  # as it was given: messages name it


def _check_name(name: Any) -> str | None:
    if name is not None and not isinstance(name, str):
        raise _type_error(f"name must be a string or None; got {name!r}")
    return name


def _is_coroutine_function(func: Callable[..., Any]) -> bool:
    if type(func) is FunctionType and not vars(func):  # the commonest, at a tenth of the time
        return bool(func.__code__.co_flags & _CO_COROUTINE)
    return _makes_coroutines(func) or _makes_coroutines(type(func).__call__)


def _makes_coroutines(func: Any) -> bool:
    """Say what ``inspect.iscoroutinefunction()`` says. Loading ``inspect`` takes 8 ms."""
    while isinstance(func, MethodType | partial):
        func = func.__func__ if isinstance(func, MethodType) else func.func
    if _COROUTINE_MARK in getattr(func, "__dict__", ()):
        return True
    code = getattr(func, "__code__", None)
    return isinstance(code, CodeType) and bool(code.co_flags & _CO_COROUTINE)


def check_count(name: str, value: Any, meaning: str) -> int:
    """Return a whole number of at least 1, or say what is wrong with it."""
    optional = "" if name == "sample_size" else ", or leave it out to have it chosen"
    if isinstance(value, bool):
        raise _type_error(
            f"{name} is {value!r}, a bool; give a whole number of at least 1 ({meaning}){optional}."
        )
    try:
        number = operator.index(value)
    except TypeError:
        raise _type_error(
            f"{name} is {_shown(value)}; give a whole number of at least 1 ({meaning}){optional}."
        ) from None
    if number < 1:
        raise _value_error(
            f"{name} is {number}; it must be at least 1 ({meaning}): "
            f"give a larger number{optional}."
        )
    return number


def check_switch(name: str, value: Any) -> bool:
    """Return a bool, or say what is wrong: "no", for one, would be taken as true."""
    if isinstance(value, bool):
        return value
    raise _type_error(f"{name} is {_shown(value)}; give True or False.")


def check_seconds(name: str, value: Any, *, zero: bool = False) -> float:
    """Return a finite number of seconds above 0 (or from it), or say what is wrong with it."""
    bound = "0 or more" if zero else "above 0"
    if isinstance(value, (bool, str, bytes)) or not hasattr(type(value), "__float__"):
        raise _type_error(f"{name} is {_shown(value)}; give a number of seconds, {bound}.")
    try:
        seconds = float(value)
    except OverflowError:  # an int beyond all floats
        seconds = math.inf
    if not math.isfinite(seconds) or seconds < 0 or (seconds == 0 and not zero):
        raise _value_error(f"{name} is {seconds}; give a finite number of seconds, {bound}.")
    return seconds


def known_length(data: Iterable[Any]) -> int | None:
    """The number of items, where the input knows it without being consumed.

    >>> known_length([1, 2]), known_length(iter([1, 2]))
    (2, None)
    """
    if not hasattr(type(data), "__len__"):
        return None
    try:
        return len(data)  # type: ignore[arg-type]  # checked above
    except Exception:  # a wrapper of an unsized input: tqdm, for one, raises TypeError
        return None


# Imported where they are raised, here and in what else the shortest runs load: making twenty
# classes of exceptions takes longer than checking arguments does.
def _type_error(message: str) -> InvalidTypeError:
    from amorsize.errors import InvalidTypeError

    return InvalidTypeError(message)


def _value_error(message: str) -> InvalidValueError:
    from amorsize.errors import InvalidValueError

    return InvalidValueError(message)


def _shown(value: Any) -> str:
    """The type, and the value where it is short; never a payload."""
    kind = type(value).__qualname__
    if value is None:
        return "None"
    if isinstance(value, (int, float, str)):
        text = repr(value)
        return f"{text if len(text) <= 40 else text[:37] + '...'} ({kind})"
    return f"an object of type {kind}"
