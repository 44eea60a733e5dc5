"""What parsers of command lines and configurations have made of what a program was given.

Found where it is used: among the variables of the user's code, and where a framework keeps it.
Only libraries that are loaded are looked for. Copies what it finds and keeps no reference to it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from tachograph.provenance import missing
from tachograph.provenance.copies import copied
from tachograph.provenance.stack import user_variables, variables_of
from tachograph.security.names import is_secret_name
from tachograph.security.texts import REDACTED
from tachograph.values import flatten

_DATACLASS_PARSERS = (
    "transformers.hf_argparser",
    "tyro",
    "simple_parsing",
    "pyrallis",
    "draccus",
)
_CLICKS = ("click", "typer._click")  # Typer carries a Click of its own
_LIGHTNINGS = ("lightning.pytorch.cli", "pytorch_lightning.cli")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_REFERENCES_FOLLOWED = 10


class Parsed(NamedTuple):
    """What one parser has made of the command line or of a configuration.

    Attributes
    ----------
    parser : str
        'argparse', 'jsonargparse', 'click', 'hydra', 'omegaconf', 'lightning', 'absl',
        'dataclass'.
    name : str
        The variable or command that it was found under.
    values : dict
        Plain values, nested as the parser has them.
    given : mapping of str to str
        Dotted path to source, where the parser tells: 'argv', 'config file' or 'default'.
    problem : str or None
        Why a parser that is used could not be read.
    """

    parser: str
    name: str
    values: dict[str, Any]
    given: Mapping[str, str] = MappingProxyType({})
    problem: str | None = None


def find_parsed() -> list[Parsed]:
    """All that is found, each once."""
    found: list[Parsed] = []
    for parser, read in _READERS.items():
        try:
            for parsed in read():
                if parsed.values and all(parsed.values != other.values for other in found):
                    found.append(parsed)
        except Exception as error:
            found.append(Parsed(parser, "", {}, problem=missing(error)["missing"]))
    return found


# ---------------------------------------------------------------------------- by framework


def _lightning() -> Iterator[Parsed]:
    """LightningCLI, which trains while it is being made, and so is a variable of its own module."""
    for name in _LIGHTNINGS:
        for kind in _loaded(name, "LightningCLI"):
            for variable in (*variables_of(name), *user_variables()):
                if issubclass(type(variable.value), kind):
                    config = vars(variable.value).get("config")
                    command = getattr(config, "subcommand", None)
                    chosen = getattr(config, command, None) if command else config
                    yield Parsed("lightning", command or variable.name, copied(chosen))


def _hydra() -> Iterator[Parsed]:
    """The composed configuration of the job that runs, and which of its values were overridden."""
    module: Any = sys.modules.get("hydra.core.hydra_config")
    if module is None or not module.HydraConfig.initialized():
        return
    hydra = module.HydraConfig.get()
    composed = _container(hydra._get_parent())
    composed.pop("hydra", None)
    overridden = {str(one).partition("=")[0].lstrip("+") for one in hydra.overrides.task}
    given = {path: "argv" if path in overridden else "config file" for path in flatten(composed)}
    yield Parsed("hydra", str(hydra.job.config_name), composed, given)


def hydra_job() -> dict[str, Any] | None:
    """How Hydra started the job; None where it did not."""
    module: Any = sys.modules.get("hydra.core.hydra_config")
    if module is None or not module.HydraConfig.initialized():
        return None
    hydra = module.HydraConfig.get()
    return {
        "config_name": hydra.job.config_name,
        "overrides": [str(one) for one in hydra.overrides.task],
        "sources": [str(one.path) for one in hydra.runtime.config_sources if one.path],
        "working_directory": hydra.runtime.cwd,
        "output_directory": hydra.runtime.output_dir,
        "output_subdirectory": hydra.output_subdir,
    }


def hydra_files() -> list[str]:
    """The files that Hydra has composed the configuration of, where they lie in folders."""
    module: Any = sys.modules.get("hydra.core.hydra_config")
    if module is None or not module.HydraConfig.initialized():
        return []
    hydra = module.HydraConfig.get()
    folders = [one.path for one in hydra.runtime.config_sources if one.schema == "file"]
    chosen = hydra.runtime.choices.items()  # a group may have a package behind '@'
    names = [hydra.job.config_name, *(f"{key.partition('@')[0]}/{name}" for key, name in chosen)]
    files = [f"{str(name).removesuffix('.yaml')}.yaml" for name in names]
    paths = (os.path.join(folder, file) for folder in folders for file in files)
    return [path for path in paths if os.path.isfile(path)]


def _click() -> Iterator[Parsed]:
    """The commands that are being run, from the outermost on."""
    for name in _CLICKS:
        module: Any = sys.modules.get(f"{name}.globals")
        context = module.get_current_context(silent=True) if module is not None else None
        contexts: list[Any] = []
        while context is not None:
            contexts.insert(0, context)
            context = context.parent
        yield from map(_command, contexts)


def _command(context: Any) -> Parsed:
    hidden = {
        option.name
        for option in context.command.params
        if getattr(option, "hide_input", False) or any(map(is_secret_name, option.opts))
    }
    values = {
        name: REDACTED if name in hidden and value is not None else value
        for name, value in context.params.items()
    }
    sources = {name: getattr(context.get_parameter_source(name), "name", "") for name in values}
    given = {name: "default" for name, source in sources.items() if source.startswith("DEFAULT")}
    return Parsed("click", context.command_path, copied(values), given)


def _absl() -> Iterator[Parsed]:
    """The flags that the user's own modules define."""
    flags: Any = getattr(sys.modules.get("absl.flags"), "FLAGS", None)
    if flags is None or not flags.is_parsed():
        return
    own = flags.get_key_flags_for_module(sys.argv[0])
    given = {flag.name: "default" for flag in own if flag.using_default_value}
    yield Parsed("absl", "FLAGS", copied({flag.name: flag.value for flag in own}), given)


# ---------------------------------------------------------------------------- by type


def _variables() -> Iterator[Parsed]:
    """Variables of the user's code whose type says that they hold arguments or a configuration."""
    namespaces = _loaded("argparse", "Namespace")
    configs = _loaded("omegaconf", "DictConfig")
    with_dataclasses = any(name in sys.modules for name in _DATACLASS_PARSERS)
    within = [one for one in variables_of("jsonargparse._cli") if one.name == "cfg"][:1]
    for name, value, _ in (*within, *user_variables()):
        kind = type(value)
        if issubclass(kind, namespaces):
            yield Parsed(kind.__module__.partition(".")[0], name, copied(value))
        elif issubclass(kind, configs):
            yield Parsed("omegaconf", name, _container(value))
        elif with_dataclasses and hasattr(kind, "__dataclass_fields__"):
            yield Parsed("dataclass", name, copied(value))


def _loaded(module: str, name: str) -> tuple[type, ...]:
    """A class of a module, if that is loaded, as `issubclass` takes it."""
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)


def _container(config: Any) -> dict[str, Any]:
    """Plain values of an OmegaConf; nothing is computed, references to other values are followed.

    A resolver may do anything and may bring in a secret, so that its call stays as it is written.
    """
    omegaconf: Any = sys.modules["omegaconf"]
    values = copied(omegaconf.OmegaConf.to_container(config, resolve=False))
    flat = flatten(values)

    def followed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: followed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [followed(item) for item in value]
        for _ in range(_REFERENCES_FOLLOWED):
            reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
            if reference is None or reference[1] not in flat:
                break
            value = flat[reference[1]]
        return value

    return {key: followed(value) for key, value in values.items()}


_READERS: dict[str, Callable[[], Iterator[Parsed]]] = {
    "lightning": _lightning,
    "hydra": _hydra,
    "click": _click,
    "absl": _absl,
    "variables": _variables,
}
