"""What is installed: stevedore finds entry points, pluggy holds the plugins, components are looked up by kind and name.

Nothing here imports torch. A plugin that cannot be loaded is set aside with its reason and everything else works.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import Any

import pluggy
from stevedore import ExtensionManager

import graftwork
from graftwork import hookspecs
from graftwork.component import KINDS, Component
from graftwork.errors import PluginError, UnknownComponentError, nearest

__all__ = ["GROUP", "Failure", "Registered", "Registry", "installed"]

GROUP = "graftwork.plugins"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
TARGET = re.compile(r"[\w.]+:[\w.]+")
REQUIREMENT = re.compile(r"^Requires-Dist:\s*graftwork(?![-\w.])(?:\[[^]]*\])?(.*)$", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class Registered:
    """A component with where it came from."""

    kind: str
    component: Component
    distribution: str
    plugin: str

    @property
    def name(self) -> str:
        """The component's name."""
        return self.component.name

    def load(self) -> Callable[..., Any]:
        """Import the component's class or factory.

        Raises:
            PluginError: if that fails, naming the distribution, the target and the reason.
        """
        module, _, attribute = self.component.target.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise PluginError(
                f'{self.kind} "{self.name}" of {self.distribution} cannot be loaded from {self.component.target}: {reason}'
            ) from error
        if not callable(found):
            raise PluginError(f'{self.kind} "{self.name}" of {self.distribution}: {self.component.target} is not callable')
        return found  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Failure:
    """A plugin that was set aside, or a name that two plugins claim."""

    distribution: str
    plugin: str
    reason: str


class _Finder(ExtensionManager[Any]):
    """Stevedore's manager over importlib's own entry points, which know their distribution; it catches whatever an import raises."""

    def list_entry_points(self) -> list[EntryPoint]:
        return sorted(
            entry_points(group=self.namespace), key=lambda entry: (_distribution(entry) != "graftwork", _distribution(entry), entry.name)
        )

    def _load_one_plugin(self, ep: EntryPoint, *args: Any, **kwargs: Any) -> Any:
        try:
            _check_core_version(ep)
            return super()._load_one_plugin(ep, *args, **kwargs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            reason = str(error) if isinstance(error, PluginError) else f"importing {ep.value} raised {type(error).__name__}: {error}"
            raise PluginError(reason) from error


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.module.partition(".")[0]


def _check_core_version(entry: EntryPoint) -> None:
    """Raise PluginError when the distribution's metadata asks for another version of graftwork."""
    headers = ((entry.dist.read_text("METADATA") or "") if entry.dist else "").partition("\n\n")[0]
    for match in REQUIREMENT.finditer(headers):
        versions, _, marker = match[1].partition(";")
        if "extra" not in marker and not _fits(versions.strip(" ()")):
            wanted = f"graftwork{versions.strip(' ()')}"
            raise PluginError(
                f'it needs {wanted}; this is graftwork {graftwork.__version__}: pip install "{wanted}", or upgrade {_distribution(entry)}'
            )


@functools.cache
def _fits(versions: str) -> bool:
    """Whether this version of graftwork is one of `versions`, such as ">=0.1,<0.2"."""
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(versions).contains(graftwork.__version__, prereleases=True)


class Registry:
    """The components of every installed plugin.

    Attributes:
        components: all that can be used, sorted by kind and name.
        failures: plugins that were set aside and names that are claimed twice.
        packages: name of each plugin that loaded -> the package that it lives in ("" for a lone module).
        hooks: pluggy's hook relay over the loaded plugins, through which runs tell trackers what happens.
    """

    def __init__(self, group: str = GROUP):
        self._plugins = pluggy.PluginManager("graftwork")
        self._plugins.add_hookspecs(hookspecs)
        self.failures: list[Failure] = []
        self.packages: dict[str, str] = {}
        found: list[Registered] = []
        for extension in _Finder(group, on_load_failure_callback=self._set_aside).extensions:
            distribution = _distribution(extension.entry_point)
            try:
                found += self._register(extension.plugin, extension.name, distribution)
                self.packages[extension.name] = extension.module_name.rpartition(".")[0]
            except Exception as error:
                reason = str(error) if isinstance(error, PluginError) else f"registering raised {type(error).__name__}: {error}"
                self.failures.append(Failure(distribution, extension.name, reason))
        self.components = sorted(found, key=lambda one: (KINDS.index(one.kind), one.name, one.distribution))
        self._by_name: dict[tuple[str, str], list[Registered]] = {}
        for one in self.components:
            self._by_name.setdefault((one.kind, one.name), []).append(one)
        self._report_collisions()
        self.hooks = self._plugins.hook

    def _set_aside(self, _: ExtensionManager[Any], entry: EntryPoint, error: BaseException) -> None:
        self.failures.append(Failure(_distribution(entry), entry.name, str(error)))

    def _register(self, plugin: Any, name: str, distribution: str) -> list[Registered]:
        """Hand a plugin to pluggy and read its components; on any fault it is taken out again."""
        key = f"{distribution}:{name}"
        try:
            self._plugins.register(plugin, key)
            self._check_hooks(plugin)
            return [
                Registered(kind, _checked(component, kind), distribution, name)
                for kind, hook in hookspecs.HOOKS.items()
                for implementation in getattr(self._plugins.hook, hook).get_hookimpls()
                if implementation.plugin is plugin
                for component in _as_list(implementation.function())
            ]
        except BaseException:
            if self._plugins.has_plugin(key):
                self._plugins.unregister(name=key)
            raise

    def _check_hooks(self, plugin: Any) -> None:
        try:
            self._plugins.check_pending()
        except pluggy.PluginValidationError as error:
            known = [hook for hook in vars(hookspecs) if hook.startswith("graftwork_")]
            unknown = [caller.name for caller in self._plugins.get_hookcallers(plugin) or () if caller.name not in known]
            hints = ", ".join(f'"{hook}"{nearest(hook, known)}' for hook in unknown)
            raise PluginError(f"it implements an unknown hook {hints}; the hooks are {', '.join(sorted(known))}") from error

    def _report_collisions(self) -> None:
        for (kind, name), claims in self._by_name.items():
            for one in claims if len(claims) > 1 else ():
                others = ", ".join(sorted({other.distribution for other in claims if other is not one}))
                reason = f'it registers {kind} "{name}", which {others} registers too: write "{one.distribution}/{name}" to pick this one'
                self.failures.append(Failure(one.distribution, one.plugin, reason))

    def __iter__(self) -> Iterator[Registered]:
        return iter(self.components)

    def names(self, kind: str) -> list[str]:
        """Names of a kind's components, each once."""
        return [name for registered_kind, name in self._by_name if registered_kind == kind]

    def find(self, kind: str, name: str) -> Registered:
        """The component of that kind and name.

        Args:
            kind: one of `KINDS`.
            name: "name", or "distribution/name" where two distributions register one name; a plugin's own name, such as "zoo",
                does as well as its distribution's.

        Raises:
            UnknownComponentError: if there is none, saying what is near, what would provide it and what is installed; or more
                than one, naming them.
        """
        distribution, _, bare = name.rpartition("/")
        claims = [
            one
            for one in self._by_name.get((kind, bare), ())
            if distribution in ("", one.plugin, one.distribution, one.distribution.removeprefix("graftwork-"))
        ]
        if len(claims) == 1:
            return claims[0]
        if claims:
            options = " or ".join(f'"{one.distribution}/{bare}"' for one in claims)
            raise UnknownComponentError(f'{kind} "{name}" is registered by {len(claims)} distributions: write {options}')
        raise UnknownComponentError(f'no {kind} "{name}" is installed{self._advice(kind, name, bare)}')

    def _advice(self, kind: str, name: str, bare: str) -> str:
        known = self.names(kind)
        others = [other for other in KINDS if (other, bare) in self._by_name and other != kind]
        provider = _catalogue().get(kind, {}).get(bare)
        if others:
            return f'; "{bare}" is {"an" if others[0][0] in "aeo" else "a"} {others[0]}'
        if provider:
            broken = next((f": {f.reason}" for f in self.failures if f.distribution == provider), None)
            return f"; {provider} provides it" + (f" but was set aside{broken}" if broken else f": pip install {provider}")
        return nearest(bare, {*known, *_catalogue().get(kind, {})}) + f"; installed: {', '.join(known) or 'none'} (see: graft list {kind})"


def _as_list(components: Iterable[Component] | None) -> list[Component]:
    return list(components or ())


def _checked(component: Any, kind: str) -> Component:
    if not isinstance(component, Component):
        raise PluginError(f"its {hookspecs.HOOKS[kind]} gives {component!r}, which is no Component")
    if not NAME.fullmatch(component.name) or not TARGET.fullmatch(component.target):
        raise PluginError(
            f'its component "{component.name}" -> "{component.target}" is malformed: '
            'a name is lower-case words joined by hyphens, a target is "package.module:attribute"'
        )
    return component


@functools.cache
def _catalogue() -> dict[str, dict[str, str]]:
    """Kind -> name -> the distribution that provides it, for every method that graftwork's own distributions offer."""
    catalogue: dict[str, dict[str, str]] = json.loads((files("graftwork") / "catalogue.json").read_text())
    return catalogue


@functools.cache
def installed() -> Registry:
    """The registry of this process, made on first use."""
    return Registry()
