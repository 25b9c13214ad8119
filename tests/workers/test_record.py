"""Records: values declared once, in classes that cost next to nothing to make."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import pytest

from amorsize.workers import record
from amorsize.workers.record import COMPILE_AFTER, Record, made, values_of

PACKAGE = Path(record.__file__).parent.parent


class Point(Record):
    """A point in a plane."""

    x: int
    y: int = 0

    dimensions: ClassVar[int] = 2

    def sum(self) -> int:
        return self.x + self.y


class Pixel(Point):
    """A point with more to it."""

    colour: str = "black"
    tags: list[str] = made(factory=list)


@pytest.fixture(params=["first", "compiled"])
def fresh(request: pytest.FixtureRequest) -> Any:
    """Return classes none of whose records was made yet, or so many that they are compiled."""

    class Box(Record):
        width: int
        height: int = 1
        content: list[int] = made(factory=list)

    if request.param == "compiled":
        for _ in range(COMPILE_AFTER + 1):
            Box(1)
    assert inspect.isfunction(vars(Box)["__init__"]) == (request.param == "compiled")
    return Box


def test_values_come_by_place_by_name_or_by_default(fresh: Any) -> None:
    """As with a dataclass, before the ``__init__`` is compiled and after."""
    for box in (fresh(2, 3), fresh(width=2, height=3), fresh(2, height=3)):
        assert (box.width, box.height, box.content) == (2, 3, [])
    assert values_of(fresh(2)) == {"width": 2, "height": 1, "content": []}
    assert fresh(2, 3, [4]).content == [4]


def test_a_default_that_can_change_is_made_for_each_record(fresh: Any) -> None:
    """Nothing that is put into one shows in another."""
    first, second = fresh(1), fresh(1)
    first.content.append(7)
    assert second.content == []


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, r"Box.__init__\(\) missing 1 required positional argument: 'width'"),
        ((1, 2, [], 4), {}, r"Box.__init__\(\) takes from 2 to 4 positional arguments but 5 were"),
        ((1,), {"depth": 2}, r"Box.__init__\(\) got an unexpected keyword argument 'depth'"),
        ((1,), {"width": 2}, r"Box.__init__\(\) got multiple values for argument 'width'"),
        ((1, 2, []), {"width": 2}, r"Box.__init__\(\) got multiple values for argument 'width'"),
        ((), {"height": 2, "depth": 1}, r"Box.__init__\(\) got an unexpected keyword .*'depth'"),
    ],
)
def test_wrong_arguments_are_refused_in_pythons_own_words(
    fresh: Any, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    """Missing, unknown, too many, and twice."""
    with pytest.raises(TypeError, match=message):
        fresh(*args, **kwargs)
    assert fresh(1).width == 1


def test_an_error_in_a_factory_is_the_callers(fresh: Any) -> None:
    """It passes unchanged."""

    def fail() -> None:
        raise LookupError("no content")

    class Crate(fresh):  # type: ignore[misc]  # a class that a fixture made
        label: str = made(factory=fail)

    with pytest.raises(LookupError, match="no content"):
        Crate(1)


def test_only_a_class_that_is_made_often_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest runs make a record or two of each class: none of them compiles."""
    compiled = []
    monkeypatch.setattr(record, "exec", lambda *args: compiled.append(args), raising=False)

    class Rare(Record):
        value: int

    for value in range(COMPILE_AFTER):
        assert Rare(value).value == value
    assert not compiled


def test_a_compiled_class_is_as_fast_as_one_by_hand() -> None:
    """Its ``__init__`` is the same bytecode: contexts and outcomes are made for each chunk."""

    class ByHand:
        __slots__ = ("x", "y")

        def __init__(self, x: int, y: int = 0) -> None:
            self.x = x
            self.y = y

    assert Point.__init__.__code__.co_code == ByHand.__init__.__code__.co_code


def test_the_signature_is_that_of_the_fields() -> None:
    """Also before any record is made."""

    class Late(Record):
        x: int
        y: int = 0
        z: list[int] = made(factory=list)

    assert list(inspect.signature(Late).parameters) == ["x", "y", "z"]
    assert inspect.signature(Late).parameters["y"].default == 0


def test_a_default_that_all_records_would_share_is_refused() -> None:
    """When the class is made, with what to write instead."""
    with pytest.raises(TypeError, match=r"share the list .* 'values'; give made\(factory="):

        class _Shared(Record):
            values: list[int] = []  # noqa: RUF012  # what is tested


def test_a_field_without_a_default_comes_before_those_with_one() -> None:
    """When the class is made, as with a dataclass."""
    with pytest.raises(TypeError, match="'second', without a default, after 'first'"):

        class _Mixed(Record):
            first: int = 0
            second: int  # type: ignore[misc]  # what is tested


def test_records_are_equal_where_their_values_and_their_class_are() -> None:
    """As those of a dataclass are, and not as tuples."""

    class Other(Record):
        x: int
        y: int

    assert Point(1) == Point(1, 0)
    assert Point(1) != Point(2)
    assert Point(1, 0) != Other(1, 0)
    assert Point(1) != (1, 0)


def test_a_record_has_no_hash() -> None:
    """Its values need have none, and may change until it is shared."""
    with pytest.raises(TypeError, match="unhashable type: 'Point'"):
        hash(Point(1))


def test_a_record_with_other_values_is_another_one() -> None:
    """The one that it was made from stays as it is."""
    point = Point(1, 2)
    assert point._replace(y=3) == Point(1, 3)
    assert point.y == 2


def test_a_value_that_a_record_does_not_have_is_refused() -> None:
    """A misspelt name says so: in place of a value, and as an attribute."""
    with pytest.raises(TypeError, match="z"):
        Point(1)._replace(z=3)
    with pytest.raises(AttributeError, match="z"):
        Point(1).z = 3  # type: ignore[attr-defined]  # what is tested


def test_a_record_shows_its_values() -> None:
    """With the name of its class, as it would be made."""
    assert repr(Point(1)) == "Point(x=1, y=0)"


def test_a_class_of_records_extends_another() -> None:
    """Its own fields come after the inherited ones, whichever class is used first."""
    assert values_of(Pixel(1, 2)) == {"x": 1, "y": 2, "colour": "black", "tags": []}
    assert Pixel(1, 2, "red").sum() == 3
    assert Point(1, 2).sum() == 3
    assert Pixel.dimensions == 2

    class Origin(Point):
        x: int = 0

    for _ in range(COMPILE_AFTER + 1):
        assert Origin() == Origin(0, 0)
    assert Pixel(1) == Pixel(x=1, y=0)


def test_a_record_is_matched_by_its_fields() -> None:
    """In the order of their declaration."""
    match Pixel(1, 2, "red"):
        case Pixel(x, y, colour="red"):
            assert (x, y) == (1, 2)
        case _:
            pytest.fail("not matched")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_record_survives_pickling(protocol: int) -> None:
    """It comes back equal, and a copy shares nothing that can change."""
    pixel = Pixel(1, tags=["corner"])
    assert pickle.loads(pickle.dumps(pixel, protocol)) == pixel
    twin = copy.deepcopy(pixel)
    twin.tags.append("edge")
    assert pixel.tags == ["corner"]


def test_annotations_are_text_in_every_module() -> None:
    """Fields are found by them; without this import, Python 3.14 has none when a class is made."""
    modules = [path for path in PACKAGE.rglob("*.py") if "(Record)" in path.read_text()]
    assert len(modules) > 20
    without = [
        path for path in modules if "from __future__ import annotations\n" not in path.read_text()
    ]
    assert without == []


def test_a_ctrl_c_while_a_class_is_made_passes_as_it_is() -> None:
    """Wherever it comes: CPython 3.11 makes a RuntimeError of one in ``__set_name__``."""

    def make() -> type[Record]:
        class Interrupted(Record):
            x: int
            y: list[int] = made(factory=list)

        return Interrupted

    def make_until(line: int) -> bool:
        """Make the class; Ctrl-C comes at so many lines of the module. Say whether it came."""
        left = line

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename != record.__file__:
                return None
            left -= event == "line"
            if not left:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            make()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    line = 1
    while make_until(line):
        line += 1
    assert line > 20, "it came at every line"
