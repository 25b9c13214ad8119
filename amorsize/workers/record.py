"""Named values, declared once, in a class that costs next to nothing to make.

The shortest runs load twenty such classes, and make a record or two of each. So neither making the
class nor making its first records may compile code. A class gets slots, and one small object for
its ``__init__``: that sets the fields by name, and gives way to compiled code (what a person would
have written by hand) once :data:`COMPILE_AFTER` records of the class have been made.

Measured with CPython 3.11.7, for 3 and for 10 fields (3.12 and 3.13 give the same picture):

============================ =============== =============== =============== ===============
way                          class, µs       first, µs       later, ns       three reads, ns
============================ =============== =============== =============== ===============
this                         12, 19          1.9, 2.3        122, 216        20, 20
``__init__`` by hand, slots  7, 10           0.4, 0.6        119, 189        20, 20
``__init__`` by hand         7, 8            0.5, 0.8        133, 211        21, 21
``@dataclass``               255, 458        1.1, 1.8        131, 222        22, 22
``@dataclass(slots=True)``   291, 511        0.9, 1.2        125, 200        20, 20
``NamedTuple``               85, 160         0.6, 0.7        209, 279        47, 48
============================ =============== =============== =============== ===============

The ``__init__`` that is compiled is, to the byte, the one by hand; "later" differs by noise alone.

Rejected: compiling at the first record (28 and 77 µs a class, over 1 ms for the shortest run);
never compiling (2 to 3 µs per record, where contexts and outcomes are made for each chunk); no
slots: CPython 3.13 then makes a record in 95 ns instead of 140, but a misspelt attribute passes.
"""

from __future__ import annotations

from types import MethodType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Self, dataclass_transform
else:

    def dataclass_transform(**_: object) -> object:
        """Do nothing: ``typing`` takes longer to load than everything here."""
        return lambda cls: cls


COMPILE_AFTER = 24
"""Records of a class that are made before its ``__init__`` is compiled: by then, making them has
taken about as long as compiling does."""


class _Made:
    """A default that is made for each record."""

    __slots__ = ("factory",)

    def __init__(self, factory: Callable[[], Any]) -> None:
        self.factory = factory


def made(*, factory: Callable[[], Any]) -> Any:
    """Declare a default that is made for each record.

    >>> class Basket(Record):
    ...     fruit: list[str] = made(factory=list)
    >>> Basket().fruit is Basket().fruit
    False
    """
    return _Made(factory)


class _Init:
    """The ``__init__`` of a class of records, until it pays to compile one.

    Wrong arguments go to the compiled one, so that the error is Python's own.
    """

    __slots__ = ("_calls", "_defaults", "_factories", "_fields", "_names", "owner")

    owner: type  # not by __set_name__: CPython 3.11 makes a RuntimeError of a Ctrl-C in there

    def __init__(self, fields: tuple[str, ...], defaults: Mapping[str, Any]) -> None:
        self._fields = fields
        self._names = frozenset(fields)
        self._defaults = defaults
        self._factories = [name for name in defaults if type(defaults[name]) is _Made]
        self._calls = 0

    def __get__(self, record: object | None, owner: type) -> Callable[..., None]:
        # Only code that wants to know the signature asks the class, or binds it to the class.
        if record is None:
            return self._compile()
        return MethodType(self._compile() if record is self.owner else self, record)

    def __call__(self, record: object, /, *args: Any, **kwargs: Any) -> None:
        fields = self._fields
        self._calls += 1
        given = len(args) + len(kwargs)
        values = dict(zip(fields, args, strict=False))
        values.update(kwargs)
        if len(values) == given < len(fields):
            values = {**self._defaults, **values}
            for name in self._factories:
                if type(values[name]) is _Made:
                    values[name] = values[name].factory()
        wrong = given > len(fields) or values.keys() != self._names
        if wrong or self._calls > COMPILE_AFTER:
            self._compile()(record, *args, **kwargs)
            return
        for name in fields:
            setattr(record, name, values[name])

    def _compile(self) -> Callable[..., None]:
        """Write the ``__init__`` that a person would have written, and give it to the class."""
        parameters, lines = ["self"], []
        for name in self._fields:
            default = f"_defaults[{name!r}]"
            parameters.append(f"{name}={default}" if name in self._defaults else name)
            value = f"{default}.factory() if {name} is {default} else {name}"
            lines.append(f"    self.{name} = {value if name in self._factories else name}\n")
        source = f"def __init__({', '.join(parameters)}):\n{''.join(lines) or '    pass'}"
        namespace = {"_defaults": self._defaults, "__name__": self.owner.__module__}
        exec(compile(source, "<record>", "exec"), namespace)
        init: Callable[..., None] = namespace["__init__"]  # type: ignore[assignment]  # made by exec
        init.__qualname__ = f"{self.owner.__qualname__}.__init__"
        self.owner.__init__ = init  # type: ignore[misc]  # takes the place of this object
        return init


class _RecordType(type):
    """Makes a class of records: a slot for each declared name, and the ``__init__``."""

    __match_args__: tuple[str, ...]
    _defaults: dict[str, Any]

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> _RecordType:
        inherited: tuple[str, ...] = ()
        defaults: dict[str, Any] = {}
        for base in bases:
            if isinstance(base, _RecordType):
                inherited, defaults = base.__match_args__, dict(base._defaults)
        own = [field for field in _declared(namespace) if field not in inherited]
        fields = (*inherited, *own)
        optional = ""
        for field in fields:
            if field in namespace:
                default = defaults[field] = namespace.pop(field)
                if type(default).__hash__ is None:
                    raise TypeError(
                        f"all records of {name} would share the {type(default).__name__} that is "
                        f"the default of {field!r}; give made(factory=...)"
                    )
            if field in defaults:
                optional = field
            elif optional:
                raise TypeError(f"{name} has {field!r}, without a default, after {optional!r}")
        namespace["__slots__"] = own
        namespace["__match_args__"] = fields
        namespace["_defaults"] = defaults
        namespace["__init__"] = init = _Init(fields, defaults)
        init.owner = made_class = super().__new__(mcs, name, bases, namespace)
        return made_class


def _declared(namespace: dict[str, Any]) -> list[str]:
    """List the annotated names of a class body, but for class variables.

    Its module imports ``annotations`` from ``__future__``: only then is there a dictionary of them,
    as text, in every version of Python.
    """
    annotations: dict[str, str] = namespace.get("__annotations__", {})
    return [name for name, text in annotations.items() if "ClassVar" not in text]


@dataclass_transform(field_specifiers=(made,))
class Record(metaclass=_RecordType):
    """Named values that are compared, and shown, together.

    A class of records declares its fields as a dataclass does; its records are made, matched and
    pickled like those of one. They have no hash, as values need have none. None is changed once it
    is shared: :meth:`_replace` makes another.

    >>> class Point(Record):
    ...     x: int
    ...     y: int = 0
    >>> Point(1)._replace(y=2)
    Point(x=1, y=2)
    """

    def _replace(self, **changes: Any) -> Self:
        """Return a record with the same values, but for some."""
        return type(self)(**{**values_of(self), **changes})

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return values_of(self) == values_of(other)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in values_of(self).items())
        return f"{type(self).__qualname__}({values})"


def values_of(record: Record) -> dict[str, Any]:
    """Return the values of a record by the names of its fields, in their order."""
    return {name: getattr(record, name) for name in type(record).__match_args__}
