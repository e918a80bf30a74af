"""A command among the others: its messages name its options, and its help what can be chosen."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extract.registry import Registry

# `size`, or `weights=random`; not what a file's name may hold between two such marks
_PARAMETER = re.compile(r"(?<![^\s(])`([a-z][a-z0-9_]*)(?:=([^`]*))?`(?![^\s;,.:)])")

# of the command that is running: each parameter's option
_options: dict[str, str] = {}


class Command(TyperCommand):
    """A command of ``fx``."""

    def choices(self) -> Mapping[str, Registry[Any]]:
        """Registries that the help lists, each below a heading."""
        return {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "" in args:  # as a path it would be this folder
            ctx.fail("an argument is empty, as a shell's variable without a value is")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        _options.clear()
        for parameter in self.params:
            for option in parameter.opts:
                if option.startswith("--") and parameter.name:
                    _options[parameter.name] = option
                    _options[option.removeprefix("--").replace("-", "_")] = option
        try:
            return super().invoke(ctx)
        except EOFError as error:
            # typer would take it for the end of a dialogue
            raise ValueError(f"a file ends too early: {error}") from error

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        for heading, registry in self.choices().items():
            with formatter.section(heading):
                formatter.write_dl([(name, registry.help(name)) for name in registry])
        super().format_epilog(ctx, formatter)


def with_options(message: str) -> str:
    """Name the running command's options where a message names the library's parameters.

    The library writes them in back-quotes: `` `size` `` becomes ``--size``, and
    `` `weights=random` `` ``--weights random``. Of what the command has no option for, the
    back-quotes alone are dropped.
    """

    def as_option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in _options:
            return found[0].strip("`")
        return _options[name] if value is None else f"{_options[name]} {value}"

    return _PARAMETER.sub(as_option, message)
