"""Pickles what another process can load, which is more than what can be pickled.

``pickle`` names functions and classes by their module, which a worker then imports. A worker
cannot import ``__main__``, ``__mp_main__`` (in a child of ``multiprocessing``), nor modules that
were loaded from a path or made by hand: what belongs to those is sent by value. ``cloudpickle``
does that. It takes 10 ms to import, and several times as long as ``pickle`` for each object, so
``pickle`` goes first; its bytes are right where they name no such module.

Two kinds of objects are pickled in a way of our own: functions under ``functools.lru_cache``, of
which each worker has its own cache, and arrays that live in a ``numpy.memmap``, whose file a
worker maps, too, so that what it writes arrives.
"""

from __future__ import annotations

import copyreg
import functools
import io
import os
import sys
import threading
from _pickle import Pickler
from functools import cache
from types import CodeType, ModuleType

from amorsize.workers import in_forked_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pickle import PickleBuffer
    from typing import Any

LARGE_BUFFER_BYTES = 1 << 20
"""Buffers from here on can be put aside, to be mapped by many processes instead of copied."""

_STANDARD = os.path.dirname(os.__file__) + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

_lock = threading.RLock()
_checked: dict[str, Any] = {}
_checked_state: tuple[int, list[str]] = 0, []
_by_value: dict[str, ModuleType] = {}


@in_forked_child
def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


def dump(value: Any, *, maps: bool = False, buffers: list[PickleBuffer] | None = None) -> bytes:
    """Pickle a value.

    Args:
        value: any object.
        maps: send arrays that live in a memory map by the name of its file; for processes of this
            machine.
        buffers: large buffers are put here; None to have them among the bytes.
    """
    modules = modules_by_value()
    aside = None if buffers is None else _put_aside(buffers)
    loaded = sys.modules.get("cloudpickle")
    if loaded is None or not loaded.list_registry_pickle_by_value():
        file = io.BytesIO()
        try:
            dump_by_name(file, value, maps=maps, aside=aside)
        except Exception:
            pass  # cloudpickle may know how, or says why not
        else:
            data = file.getvalue()
            if not any(name in data for name in map(as_pickled, modules)):
                return data
        if buffers is not None:
            buffers.clear()
    file = io.BytesIO()
    dump_by_value(file, value, maps=maps, aside=aside)
    return file.getvalue()


def dump_by_name(
    file: Any, value: Any, *, maps: bool, aside: Callable[[Any], bool] | None = None
) -> None:
    """Pickle into a file, functions and classes by name; see :func:`dump`."""
    pickler = Pickler(file, 5, buffer_callback=aside)
    if maps and "numpy" in sys.modules:
        pickler.dispatch_table = {**copyreg.dispatch_table, **_map_reducers()}
    pickler.dump(value)


def dump_by_value(
    file: Any, value: Any, *, maps: bool, aside: Callable[[Any], bool] | None = None
) -> None:
    """Pickle into a file, by value what another process cannot import; see :func:`dump`."""
    pickler = _pickler_by_value(maps and "numpy" in sys.modules)(file, 5, buffer_callback=aside)
    with _lock:
        registered = _register(modules_by_value())
        try:
            pickler.dump(value)
        finally:
            _unregister(registered)


def _put_aside(buffers: list[PickleBuffer]) -> Callable[[PickleBuffer], bool]:
    def keep_here(buffer: PickleBuffer) -> bool:
        try:
            if buffer.raw().nbytes < LARGE_BUFFER_BYTES:
                return True
        except BufferError:  # it is not contiguous
            return True
        buffers.append(buffer)
        return False

    return keep_here


def as_pickled(name: str) -> bytes:
    """Return a module's name as pickle writes it."""
    encoded = name.encode()
    return b"\x8c" + bytes([len(encoded)]) + encoded if len(encoded) < 256 else encoded


# --- modules that a worker cannot import ----


def modules_by_value() -> dict[str, ModuleType]:
    """Return the loaded modules that another process of this program could not import."""
    global _checked_state
    with _lock:
        state = len(sys.modules), sys.path
        if state == _checked_state and all(sys.modules.get(n) is m for n, m in _by_value.items()):
            return dict(_by_value)
        if state[1] != _checked_state[1]:
            _checked.clear()
        for name, module in list(sys.modules.items()):
            if _checked.get(name) is not module:
                if not _is_importable(name, module):
                    _by_value[name] = module
                else:
                    _by_value.pop(name, None)
                _checked[name] = module  # last: a child that is forked in between checks it again
        for name in [name for name in _by_value if name not in sys.modules]:
            del _by_value[name]
        _checked_state = len(sys.modules), list(sys.path)
        return dict(_by_value)


def names_of(module: Any) -> dict[str, Any]:
    """Return the names of a module, read past ``__getattr__``, which would load one that is lazy.

    Empty for other objects, of which some say that they are a module (those of cffi).
    """
    if not issubclass(type(module), ModuleType):
        return {}
    names: dict[str, Any] = object.__getattribute__(module, "__dict__")
    return names


def _is_importable(name: str, module: Any) -> bool:
    """Say whether importing a name elsewhere gives this module."""
    if name in ("__main__", "__mp_main__"):
        return False
    names = names_of(module)
    if not names:
        return True
    file, parent = names.get("__file__"), name.rpartition(".")[0]
    if not isinstance(file, str):
        # Built in, a namespace, made by an extension inside of its package; or made by hand.
        if names.get("__spec__") is not None:
            return True
        return parent in sys.modules and _is_importable(parent, sys.modules[parent])
    if file.startswith(_STANDARD) or any(part in file for part in _INSTALLED):
        return True
    path = None
    if parent:
        package = sys.modules.get(parent)
        path = None if package is None else getattr(package, "__path__", None)
        if path is None:
            return False
    try:
        return any(
            spec is not None and spec.origin is not None and _same_file(spec.origin, file)
            for spec in (finder.find_spec(name, path) for finder in _finders())
        )
    except Exception:  # an importer of somebody else's
        return True


def _finders() -> Iterator[Any]:
    """Yield what finds modules in a worker as it does here: the path, and editable installs."""
    import importlib.machinery

    yield importlib.machinery.PathFinder
    for finder in sys.meta_path:
        if "editable" in (getattr(finder, "__module__", None) or type(finder).__module__):
            yield finder


def _same_file(one: str, other: str) -> bool:
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def _register(modules: dict[str, ModuleType]) -> list[ModuleType]:
    """Have cloudpickle pickle what belongs to these modules by value; return what was new to it."""
    import cloudpickle

    before = set(cloudpickle.list_registry_pickle_by_value())
    added = []
    for name, module in modules.items():
        if name != "__main__" and name not in before and names_of(module)["__name__"] == name:
            cloudpickle.register_pickle_by_value(module)
            added.append(module)
    return added


def _unregister(modules: list[ModuleType]) -> None:
    import cloudpickle

    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


@cache
def _pickler_by_value(maps: bool) -> Any:
    """Return cloudpickle's pickler, for code that keeps the name of its file.

    Since 3.1.3 cloudpickle replaces that: tracebacks of a worker would not show the user's lines.
    """
    import cloudpickle

    reduce_code = cloudpickle.Pickler.dispatch_table[CodeType]

    def reduce_named(code: CodeType) -> Any:
        return _name_code, (*reduce_code(code), code.co_filename)

    own: dict[Any, Any] = {CodeType: reduce_named, functools._lru_cache_wrapper: _reduce_cached}
    if maps:
        own |= _map_reducers()

    class ByValue(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
        dispatch_table = cloudpickle.Pickler.dispatch_table.new_child(own)

    return ByValue


def _name_code(make: Callable[..., CodeType], arguments: tuple[Any, ...], file: str) -> CodeType:
    return make(*arguments).replace(co_filename=file)


# --- functions under lru_cache ----


class _Wrapped:
    """A function that is set once it is loaded: it may refer to the cache that it is under."""

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.func(*args, **named)

    func: Callable[..., Any]


def _reduce_cached(cached: Any) -> Any:
    if cached.__module__ not in modules_by_value() and "<locals>" not in cached.__qualname__:
        return cached.__reduce__()
    parameters = cached.cache_parameters()
    arguments = parameters["maxsize"], parameters["typed"]
    return _make_cached, arguments, cached.__wrapped__, None, None, _set_wrapped


def _make_cached(maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(_Wrapped())


def _set_wrapped(cached: Any, func: Callable[..., Any]) -> None:
    cached.__wrapped__.func = func
    functools.update_wrapper(cached, func)


# --- arrays in a memory map ----


def _map_reducers() -> dict[type, Callable[[Any], Any]]:
    import numpy

    return {numpy.ndarray: _reduce_array, numpy.memmap: _reduce_array}


def _reduce_array(array: Any) -> Any:
    """Reduce an array whose memory is that of a mapped file to a mapping of the same bytes."""
    root = _root_map(array)
    # A copy on write differs from its file, and a file without a name cannot be opened again.
    if root is None or root.mode == "c" or not array.size or not _is_on_disk(root):
        return array.__reduce_ex__(5)
    low, high = _byte_bounds(array)
    start = root.__array_interface__["data"][0]
    if low < start or high > start + root.nbytes:
        return array.__reduce_ex__(5)
    offset = root.offset + low - start
    first = array.__array_interface__["data"][0] - low
    mode = "r" if root.mode == "r" or not array.flags.writeable else "r+"
    memmap = isinstance(array, type(root))
    place = str(root.filename), mode, offset, high - low
    return _map_array, (*place, array.dtype, array.shape, first, array.strides, memmap)


def _root_map(array: Any) -> Any:
    """Return the memmap whose file an array's memory is, or None."""
    import mmap

    numpy = sys.modules["numpy"]
    while isinstance(array, numpy.ndarray):
        if isinstance(array, numpy.memmap) and isinstance(array.base, mmap.mmap):
            return array
        array = array.base
    return None


def _is_on_disk(root: Any) -> bool:
    return root.filename is not None and os.path.exists(root.filename)


def _byte_bounds(array: Any) -> tuple[int, int]:
    """Return the address of an array's first byte, and of the one after its last."""
    low = high = array.__array_interface__["data"][0]
    for length, stride in zip(array.shape, array.strides, strict=True):
        reach = (length - 1) * stride
        low, high = (low + reach, high) if stride < 0 else (low, high + reach)
    return low, high + array.itemsize


def _map_array(
    file: str,
    mode: Any,
    offset: int,
    size: int,
    dtype: Any,
    shape: tuple[int, ...],
    first: int,
    strides: tuple[int, ...],
    memmap: bool,
) -> Any:
    import numpy

    mapped = numpy.memmap(file, dtype="u1", mode=mode, offset=offset, shape=(size,))
    kind = numpy.memmap if memmap else numpy.ndarray
    return numpy.ndarray(shape, dtype, mapped, first, strides).view(kind)
