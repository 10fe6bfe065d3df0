"""`Single`: for objects that own what there is once; a copy of one would close it under the other."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex


class Single:
    """An object that is not copied or pickled. It owns nothing."""

    __slots__ = ()

    def __reduce_ex__(self, _protocol: SupportsIndex) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be copied or pickled: it owns what there is once")
