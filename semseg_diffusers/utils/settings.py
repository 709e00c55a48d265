"""Settings of commands as dataclasses, read from the command line, YAML files and presets.

A command has one dataclass; groups of options that several commands share are its base classes. Each field is written
with `option(...)`, which carries help text, range and choices. Imports the standard library and PyYAML only, so that
`--help` answers at once.
"""

import argparse
import dataclasses
import difflib
import inspect
import json
import math
import operator
import os
import re
import shlex
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

import yaml


S = TypeVar("S", bound="Settings")
_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "at_least": (operator.ge, "{:g} or more"),
    "above": (operator.gt, "more than {:g}"),
    "at_most": (operator.le, "at most {:g}"),
    "below": (operator.lt, "less than {:g}"),
}
# Other spellings, of options that commands call differently and of values: accepted, but not listed by --help.
_SYNONYMS = (("output", "output_dir"), ("num_workers", "dataloader_num_workers"), ("dtype", "mixed_precision"))
_PRECISIONS = {
    "dtype": {"no": "float32", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"},
    "mixed_precision": {"float32": "no", "fp32": "no", "float16": "fp16", "bfloat16": "bf16"},
}
_METAVARS = {int: "N", float: "X"}
_BOOLEANS = {**dict.fromkeys(("true", "1", "yes", "on"), True), **dict.fromkeys(("false", "0", "no", "off"), False)}


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,  # one line; the default is appended
    choices: Sequence[Any] = (),
    at_least: float | None = None,  # the range of a number, or of each number in a tuple
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    metavar: str | None = None,  # placeholder of the value in `--help`
    name: str | None = None,  # spelling of the option, where it is no name of a field, such as `from`
    old_names: Sequence[str] = (),  # earlier spellings, accepted but not listed
    positional: bool = False,  # without `--`
    repeated: bool = False,  # may be given several times, one value each
    parse: Callable[[Any], Any] | None = None,  # reads the text in place of the field's type
) -> Any:
    """Return a dataclass field that becomes a command-line option, required without a `default`."""
    metadata = {
        "help": help, "choices": tuple(choices), "at_least": at_least, "above": above, "at_most": at_most,
        "below": below, "metavar": metavar, "name": name, "old_names": tuple(old_names), "positional": positional,
        "repeated": repeated, "parse": parse,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base class of the settings of a command: checks each field against its choices and its range."""

    # Complete recipes that `--preset` selects by name; a class without any has no such option.
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    # Fields that the command line names, whatever their values.
    _named: ClassVar[Collection[str]] = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                if item is not None:
                    _check_value(field, item)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON values under the names of the options."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    @classmethod
    def implied(cls, given: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG003
        """Return values that the given options imply, where presets, files and the command line give no others."""
        return {}

    def to_arguments(self) -> list[str]:
        """Return the command-line arguments that give these settings; options at their defaults are left out."""
        words = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if isinstance(value, bool):
                texts = [] if value else ["false"]
            else:
                texts = [_to_text(item) for item in value] if isinstance(value, (tuple, list)) else [_to_text(value)]
            meta = field.metadata
            if meta.get("parse") is not None and isinstance(value, tuple):  # height and width
                texts = ["x".join(texts)]
            if meta.get("positional"):
                words += texts
            elif meta.get("repeated"):
                words += [word for text in texts for word in (f"--{_option_name(field)}", text)]
            elif len(texts) == 1 and texts[0].startswith("-"):  # argparse would take it for an option
                words.append(f"--{_option_name(field)}={texts[0]}")
            else:
                words += [f"--{_option_name(field)}", *texts]
        return words

    def to_command(self, name: str) -> str:
        """Return the shell command that gives these settings to the command `name`."""
        return shlex.join(["semseg-diffusers", name, *self.to_arguments()])

    def given(self, names: Iterable[str]) -> list[str]:
        """Return, as `--name`, those of `names` that differ from the defaults or are given, but not as `none`."""
        values = {name: getattr(self, name) for name in names}
        named = {name for name in self._named if values.get(name) is not None}
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return [f"--{name}" for name, value in values.items() if name in named or value != defaults.get(name, value)]


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Return the settings that differ, as "name: old there, new now; ..."; a long value, a list of betas, is cut.

    Two spellings of a path, `masks` and `./masks/`, are the same.
    """
    return "; ".join(
        f"{name}: {saved.get(name)!s:.200} there, {current.get(name)!s:.200} now"
        for name in sorted({*saved, *current})
        if _normalized(saved.get(name)) != _normalized(current.get(name))
    )


def _normalized(value: Any) -> Any:
    """Return a setting with one spelling of each path in it."""
    if isinstance(value, str):
        return os.path.normpath(value) if value else value
    return [_normalized(each) for each in value] if isinstance(value, (list, tuple)) else value


def describe_value(value: Any) -> str:
    """Return a value as people read it, texts about classes and things as `car "a red car"; bus "a white bus", -`."""
    if not isinstance(value, Mapping):
        return str(value)
    parts = []
    for name, texts in value.items():
        listed = texts if isinstance(texts, (list, tuple)) else [texts]
        parts.append(f"{name} " + ", ".join("-" if text is None else f'"{text}"' for text in listed))
    return "; ".join(parts) or "none"


def _option_name(field: dataclasses.Field) -> str:
    return field.metadata.get("name") or field.name


def _spellings(settings: type[Settings]) -> dict[str, list[str]]:
    """Return the accepted spellings of each field: its option first, then those that are not listed."""
    fields = {field.name: field for field in dataclasses.fields(settings)}
    other = {a: b for pair in _SYNONYMS for a, b in (pair, pair[::-1]) if a in fields and b not in fields}
    return {
        name: [_option_name(field), *field.metadata.get("old_names", ()), *([other[name]] if name in other else [])]
        for name, field in fields.items()
    }


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question that names the nearest known word, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(map(str, known)), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def _to_text(value: Any) -> str:
    return "none" if value is None else f"{value:.12g}" if isinstance(value, float) else str(value)


def _check_value(field: dataclasses.Field, value: Any) -> None:
    meta, name = field.metadata, f"--{_option_name(field)}"
    if meta.get("choices") and value not in meta["choices"]:
        listing, hint = ", ".join(map(str, meta["choices"])), did_you_mean(str(value), meta["choices"])
        raise ValueError(f"{name} must be one of {listing}; got {value!r}.{hint}")
    bounds = {key: meta[key] for key in _BOUNDS if meta.get(key) is not None}
    if not bounds or isinstance(value, (bool, str)):
        return
    if not math.isfinite(value) or not all(_BOUNDS[key][0](value, bound) for key, bound in bounds.items()):
        expected = " and ".join(_BOUNDS[key][1].format(bound) for key, bound in bounds.items())
        if list(bounds) == ["at_least", "at_most"]:
            expected = "between {at_least:g} and {at_most:g}".format(**bounds)
        raise ValueError(f"{name} must be {expected}; got {value}.")


def value_type(field: dataclasses.Field) -> tuple[type, bool, bool]:
    """Return a field's type without tuple and None: (type, is a tuple, may be None)."""
    kind: Any = field.type
    optional = False
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        members = [member for member in typing.get_args(kind) if member is not type(None)]
        optional, kind = len(members) < len(typing.get_args(kind)), members[0]
    is_tuple = typing.get_origin(kind) is tuple
    return (typing.get_args(kind)[0] if is_tuple else kind), is_tuple, optional


def parse_value(field: dataclasses.Field, text: Any) -> Any:
    """Convert the text of an option, or a value of a YAML file, to the type of its field."""
    kind, is_tuple, optional = value_type(field)
    if text is None or (isinstance(text, str) and text.lower() == "none" and optional):
        if not optional:
            raise ValueError("expected a value")
        return None
    if field.name in _PRECISIONS:
        text = _PRECISIONS[field.name].get(str(text), text)
    if field.metadata.get("parse") is not None:
        return tuple(text) if isinstance(text, (list, tuple)) else field.metadata["parse"](str(text))
    if is_tuple and not isinstance(text, (list, tuple)):
        text = [text] if isinstance(text, str) and kind is str else str(text).replace(",", " ").split()
    return tuple(_parse_item(kind, part) for part in text) if is_tuple else _parse_item(kind, text)


def _parse_item(kind: type, text: Any) -> Any:
    if kind is bool:
        if str(text).lower() not in _BOOLEANS:
            raise ValueError(f"expected true or false; got {text!r}")
        return _BOOLEANS[str(text).lower()]
    try:
        if kind is int and isinstance(text, float) and not text.is_integer():
            raise ValueError
        return kind(text)
    except (TypeError, ValueError) as err:
        names = {int: "a whole number", float: "a number"}
        raise ValueError(f"expected {names.get(kind, kind.__name__)}; got {text!r}") from err


def as_list(title: str, items: Iterable[str]) -> str:
    """Return a message of several items, one a line, as the console script prints it."""
    return "\n".join([f"{title}:", *(f"- {' '.join(item.split())}" for item in items)])


# Package -> the extra of ours that installs it.
EXTRAS = {"torchmetrics": "eval", "gradio": "app"}


def error_text(err: BaseException) -> str:
    """Return an error as one line; items that start with "- " stand on lines of their own."""
    lines: list[str] = []
    for line in str(err).splitlines():
        is_own = line.startswith("- ") or (bool(lines) and lines[-1].startswith("- ") and not line.startswith(" "))
        if is_own or not lines:
            lines.append(line.rstrip())
        else:
            lines[-1] += f" {line.strip()}"
    return "\n  ".join(["".join(lines[:1]), *lines[1:]])


def command_error(err: Exception, name: str) -> str:
    """Return what a command says of an error that its user can mend; with SEMSEG_DEBUG=1 it is raised again.

    So is one of a missing package that no extra installs.
    """
    if os.environ.get("SEMSEG_DEBUG") == "1":
        raise err
    if isinstance(err, ModuleNotFoundError) and err.name in EXTRAS:
        return f"{name} needs {err.name}: pip install 'semseg-diffusers[{EXTRAS[err.name]}]'"
    if isinstance(err, ModuleNotFoundError):
        raise err
    return error_text(err)


def build_settings(settings: type[S], *layers: tuple[str, Mapping[str, Any]], named: Collection[str] = ()) -> S:
    """Merge layers (source for messages, option name -> value), of which later ones take precedence, into settings.

    `named` are fields that the command line names; `Settings.given` lists them even at their default values.
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    new_names = {spelling: name for name, spellings in _spellings(settings).items() for spelling in spellings}
    values: dict[str, Any] = {}
    for source, layer in layers:
        unknown = sorted(name for name in layer if new_names.get(name, name) not in fields)
        if unknown:
            hint = did_you_mean(unknown[0], [*new_names, *fields])
            raise ValueError(f"{source}: unknown option(s) {', '.join(unknown)}.{hint} --help lists all options.")
        for name, text in layer.items():
            name = new_names.get(name, name)
            try:
                values[name] = parse_value(fields[name], text)
            except ValueError as err:
                raise ValueError(f"{source}: --{_option_name(fields[name])}: {err}.") from err
    missing = [field for field in fields.values() if field.default is dataclasses.MISSING and field.name not in values]
    if missing:
        described = [f"--{_option_name(field)} ({field.metadata.get('help', '')})" for field in missing]
        raise ValueError(
            f"missing options: {described[0]}." if len(described) == 1 else as_list("missing options", described)
        )
    result = object.__new__(settings)
    object.__setattr__(result, "_named", named)  # before `__init__`, which checks the values
    settings.__init__(result, **values)
    return result


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise yaml.YAMLError(f"'{repeated[0]}' occurs twice")
        return super().construct_mapping(node, deep)


class _Options(_UniqueKeys):
    """YAML of options, in which yes, no, on and off are texts: `no` and `off` are values of options."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:bool"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_BOOLEAN = re.compile("^(true|True|TRUE|false|False|FALSE)$")
_Options.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOLEAN, list("tTfF"))


def parse_yaml(text: str | bytes) -> Any:
    """Return the value of YAML or JSON; a key that occurs twice, of which both keep the last, is a `YAMLError`."""
    return yaml.load(text, Loader=_UniqueKeys)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of `option: value` lines."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--config {path}: no such file.")
    try:
        content = yaml.load(path.read_bytes(), Loader=_Options) or {}  # of bytes, YAML finds the encoding
    except yaml.YAMLError as err:
        raise ValueError(f"--config {path} is not YAML: {err}") from err
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} must hold `option: value` lines; got a {type(content).__name__}.")
    return content


class SettingsParser(argparse.ArgumentParser):
    """A parser with one option for each field of a settings dataclass, and `--config`.

    Options are grouped by the class that defines them, under its `_group` title; a class with `PRESETS` gets
    `--preset` as well. The docstring of the dataclass is the description.
    """

    def __init__(self, settings: type[Settings], **kwargs: Any):
        kwargs.setdefault("description", inspect.cleandoc(settings.__doc__ or ""))
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**kwargs)
        self.settings = settings
        groups: dict[str, Any] = {}
        spellings = _spellings(settings)
        for field in dataclasses.fields(settings):
            owner = next(
                cls for cls in reversed(settings.__mro__) if field.name in cls.__dict__.get("__annotations__", ())
            )
            title = owner.__dict__.get("_group", "options")
            if title not in groups:
                groups[title] = self if title == "options" else self.add_argument_group(title)
            self._add_option(groups[title], field, spellings[field.name][1:])
        self.add_argument("--config", metavar="FILE", help="YAML file of options; the command line takes precedence")
        if settings.PRESETS:
            self.add_argument(
                "--preset", choices=sorted(settings.PRESETS), default=argparse.SUPPRESS,
                help="a complete recipe; other options take precedence",
            )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """Print a mistake in the options and end; near a known option, ask whether that was meant."""
        words = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        unknown = next((word for word in words if word not in self._option_string_actions), None)
        if message.startswith("unrecognized arguments") and unknown is not None:
            message += "." + did_you_mean(unknown, self._option_string_actions)
        super().error(message)

    def _get_option_tuples(self, option_string: str) -> list:
        """Return the options that an abbreviation may stand for: those that --help lists, each once."""
        found = super()._get_option_tuples(option_string)
        listed = {each[0].dest: each for each in reversed(found) if each[0].help is not argparse.SUPPRESS}
        return [*listed.values()] or found

    @staticmethod
    def _add_option(group: Any, field: dataclasses.Field, others: Sequence[str]) -> None:
        meta = field.metadata
        kind, is_tuple, _ = value_type(field)
        keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help_text(field)}
        if kind is bool:
            keywords |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        else:
            choices = ",".join(map(str, meta.get("choices", ())))
            keywords["metavar"] = meta.get("metavar") or (
                f"{{{choices}}}" if choices else _METAVARS.get(kind) or field.name.split("_")[-1].upper()
            )
            if is_tuple and meta.get("parse") is None:
                keywords |= {"action": "append"} if meta.get("repeated") else {"nargs": "+" if field.default else "*"}
        if meta.get("positional"):
            group.add_argument(field.name, **keywords)
            return
        group.add_argument(f"--{_option_name(field)}", dest=field.name, **keywords)
        for other in others:
            group.add_argument(f"--{other}", dest=field.name, **{**keywords, "help": argparse.SUPPRESS})

    def parse_settings(self, arguments: Sequence[str] | None = None) -> Settings:
        """Parse arguments (those of the process by default) into settings."""
        given = vars(self.parse_args(arguments))
        config = given.pop("config", None)
        from_file = {} if config is None else read_yaml(config)
        preset = None
        if self.settings.PRESETS:
            preset = {"preset": from_file.pop("preset", None), **given}["preset"]
            given.pop("preset", None)
        layers: list[tuple[str, Mapping[str, Any]]] = [(f"--config {config}", from_file), ("command line", given)]
        if preset is not None:
            if preset not in self.settings.PRESETS:
                raise ValueError(f"--preset {preset!r}: expected one of {', '.join(sorted(self.settings.PRESETS))}.")
            layers.insert(0, (f"--preset {preset}", self.settings.PRESETS[preset]))
        layers.insert(0, ("base model", self.settings.implied({**from_file, **given})))
        return build_settings(self.settings, *layers, named=frozenset(given))


def _help_text(field: dataclasses.Field) -> str:
    text, default = field.metadata.get("help", ""), field.default
    if default is dataclasses.MISSING:
        text += " (required)"
    elif default not in (None, False, ()) and "default" not in text:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text += f" (default: {shown})"
    return text.replace("%", "%%")
