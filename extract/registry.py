"""Things that grow in number, one a module of a package, found there by the module's name.

Names and one line of help are read from the files: listing them imports nothing. A module is
imported when its object is asked for.
"""

import ast
import difflib
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, TypeVar, cast

from extract.errors import FxError

Item = TypeVar("Item")


class Registry(Generic[Item]):
    """Objects of one kind by their names.

    Every module of a package whose name begins with no underscore holds one, under the name that
    all of them have. Others are added with ``add``.

    Parameters
    ----------
    package : str, dotted name
    attribute : str, what the object is called in its module
    what : str, one of them in a message, such as ``metric``
    """

    def __init__(self, package: str, attribute: str, what: str) -> None:
        self.package = package
        self.attribute = attribute
        self.what = what
        self._added: dict[str, tuple[Item, str]] = {}

    def add(self, name: str, item: Item, help_: str) -> None:
        """Add an object that no module of the package holds."""
        self._added[name] = item, help_

    @property
    def added(self) -> dict[str, tuple[Item, str]]:
        """What ``add`` added, with its line of help: another process does not know of it."""
        return dict(self._added)

    def remove(self, name: str) -> None:
        """Take away what ``add`` added."""
        del self._added[name]

    def names(self) -> tuple[str, ...]:
        """All names, in the order of the alphabet."""
        paths = import_module(self.package).__path__
        found = {module.name for module in pkgutil.iter_modules(paths)}
        return tuple(sorted({n for n in found if not n.startswith("_")} | self._added.keys()))

    def help(self, name: str) -> str:
        """One line that says what an object is: the first of its module's docstring."""
        if name in self._added:
            return self._added[name][1]
        spec = find_spec(f"{self.package}.{self.check(name)}")
        assert spec is not None
        assert spec.origin is not None
        text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        return (text or "").split("\n", 1)[0]

    def check(self, name: str) -> str:
        """Return a name that there is.

        Raises
        ------
        FxError
            If there is none such.
        """
        names = self.names()
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"nearest: {near[0]}; " if near else ""
            raise FxError(f"unknown {self.what} {name!r}; {hint}choose from {', '.join(names)}")
        return name

    def __getitem__(self, name: str) -> Item:
        if name in self._added:
            return self._added[name][0]
        module = import_module(f"{self.package}.{self.check(name)}")
        return cast("Item", getattr(module, self.attribute))

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())
