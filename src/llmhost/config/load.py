"""From models.toml, environment and flags to one frozen `Settings`: file < environment < flags.

Where each value came from is kept, for errors and for `llmhost config explain`. The first problem is raised as a
ConfigError that names file, table and key, or the variable, or the flag. Nothing is clamped or skipped in silence.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from llmhost.config.check import looks_like_a_hub_name, problems
from llmhost.config.convert import (
    Place,
    convert_keys,
    from_text,
    from_toml,
    key_types,
    nearest,
)
from llmhost.config.environment import TABLES, VARIABLES, read_settings
from llmhost.config.schema import Settings
from llmhost.config.schema.engines import ENGINE_OPTIONS
from llmhost.config.schema.models import MODEL_TABLES, ModelSpec
from llmhost.config.schema.money import PriceSettings
from llmhost.config.schema.section import Section
from llmhost.config.sources import is_gguf_source
from llmhost.core.errors import ConfigError

DEFAULT_FILE = Path("models.toml")

DEFAULT_MODELS = {
    "tiny": ModelSpec(
        aliases=("gpt-4o-mini",),
        price=PriceSettings(input="0.10", cached_input="0.01", output="0.40"),
    ),
    "tiny-embed": ModelSpec(
        source="builtin:tiny-embed",
        aliases=("text-embedding-3-small",),
        load="request",
        price=PriceSettings(input="0.02"),
    ),
    "tiny-guard": ModelSpec(
        source="builtin:tiny-guard",
        aliases=("omni-moderation-latest", "text-moderation-latest"),
        load="request",
        guard="classifier",
        price=PriceSettings(),
    ),
}
"""What is served where no file says otherwise; the shipped models.toml declares the same."""

FLAGS = {
    "server.host": "--host",
    "server.port": "--port",
    "server.data_dir": "--data-dir",
    "server.log_level": "--log-level",
    "server.unix_socket": "--uds",
    "server.tls_cert": "--tls-cert",
    "server.tls_key": "--tls-key",
    "server.root_path": "--root-path",
    "plugins.dir": "--plugins",
}
"""Keys that the command line can set, and the flag that errors name."""

_PATHS = (
    *("server.data_dir", "server.unix_socket", "server.tls_cert", "server.tls_key"),
    "plugins.dir",
)


class Origin(NamedTuple):
    """Where a value came from. `name` is the file, the variable or the flag; empty for a default."""

    kind: Literal["default", "file", "environment", "flag"]
    name: str


_DEFAULT = Origin("default", "")


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and the story of each of them."""

    settings: Settings
    origins: Mapping[str, Origin]
    """Dotted key, such as `server.port` or `models.tiny.price.input`, to where its value came from."""
    path: Path | None = None
    """The file that was read; None when the built-in default serves."""
    flags: Mapping[str, object] = field(default_factory=dict)
    """As they were given: `load(it.path, environ, it.flags)` reads everything again."""

    @property
    def data_dir(self) -> Path:
        return Path(self.settings.server.data_dir).expanduser()

    @property
    def plugins_dir(self) -> Path | None:
        """The folder to load plugins from: the one that was named, or `plugins` in the data dir if there is one."""
        if self.settings.plugins.dir is not None:
            return Path(self.settings.plugins.dir).expanduser()
        usual = self.data_dir / "plugins"
        return usual if usual.is_dir() else None


def load(
    path: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]
) -> LoadedSettings:
    """Read and check everything. Raises ConfigError with the first problem.

    `path` None takes models.toml of the current directory if there is one, else the built-in default. `flags` maps
    dotted keys to values; None means that the flag was not given.
    """
    if path is None and DEFAULT_FILE.is_file():
        path = DEFAULT_FILE
    tables = {} if path is None else _read(path)
    origins: dict[str, Origin] = {}
    sections = _fixed_tables(tables, path, origins)
    _apply_environment(environ, sections, origins)
    _apply_flags(flags, sections, origins)
    models = DEFAULT_MODELS if path is None else _models(tables.get("models", {}), path, origins)
    fixed: dict[str, Any] = {name: TABLES[name](**keys) for name, keys in sections.items()}
    settings = Settings(models=models, **fixed)
    for key, problem in problems(settings):
        raise ConfigError(f"{where(key, settings, origins, path)} {problem}.")
    _check_folders(settings, origins, path)
    for key, _, _ in walk(settings):
        origins.setdefault(key, _DEFAULT)
    return LoadedSettings(
        settings, origins, path, {k: v for k, v in flags.items() if v is not None}
    )


def walk(settings: Settings) -> Iterator[tuple[str, type[Section], str]]:
    """Each key that has a value: dotted, with the struct that documents it and its name there."""
    for table, section in TABLES.items():
        for key in section.__struct_fields__:
            yield f"{table}.{key}", section, key
    for name, spec in settings.models.items():
        for key in ModelSpec.__struct_fields__:
            if key in MODEL_TABLES and getattr(spec, key) is not None:
                for part in MODEL_TABLES[key].__struct_fields__:
                    yield f"models.{name}.{key}.{part}", MODEL_TABLES[key], part
            elif key == "options":
                if options := ENGINE_OPTIONS.get(spec.engine):
                    for part in options.__struct_fields__:
                        yield f"models.{name}.options.{part}", options, part
            else:
                yield f"models.{name}.{key}", ModelSpec, key


def where(key: str, settings: Settings, origins: Mapping[str, Origin], path: Path | None) -> str:
    """What an error calls a key: by the file's table, the variable or the flag that set it."""
    origin = origins.get(key, _DEFAULT)
    if origin.kind in ("environment", "flag"):
        return origin.name
    file = f"{path}: " if path is not None else ""
    for name in sorted(settings.models, key=len, reverse=True):
        dotted = f"models.{name}"
        if key == dotted:
            return f"{file}[{model_table(name)}]"
        if key.startswith(f"{dotted}."):
            *table, last = key.removeprefix(f"{dotted}.").split(".")
            return f"{file}[{'.'.join([model_table(name), *table])}] {last}"
    table_name, _, last = key.partition(".")
    return f"{file}[{table_name}] {last}"


def model_table(name: str) -> str:
    """`models.tiny`, with quotes where TOML needs them."""
    return f"models.{name}" if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'models."{name}"'


def _read(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.expanduser().read_bytes().decode())
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}).") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {_syntax(str(error))}") from None
    for name, value in tables.items():
        if name not in (*TABLES, "models"):
            raise ConfigError(f"{path}: {_unknown_table(name, value)}")
    return tables


def _syntax(message: str) -> str:
    """tomllib's `Invalid value (at line 3, column 8)` with the line in front."""
    match = re.fullmatch(r"(.*) \(at (line \d+, column \d+|end of document)\)", message, re.DOTALL)
    what, at = (match[1], match[2]) if match else (message, "somewhere")
    return f"{at}: not valid TOML: {what[0].lower()}{what[1:]}."


def _unknown_table(name: str, value: object) -> str:
    if not isinstance(value, dict):
        home = _homes().get(name)
        hint = f" Put it under [{home}]." if home else ""
        return f"{name!r} stands outside of any table.{hint}"
    close = nearest(name, [*TABLES, "models"])
    if close == "models":
        return f"there is no table [{name}]. Did you mean [models.NAME]?"
    hint = f"Did you mean [{close}]?" if close else f"A model's table is [models.{name}]."
    return f"there is no table [{name}]. {hint}"


def _homes() -> dict[str, str]:
    homes = dict.fromkeys(ModelSpec.__struct_fields__, "models.NAME")
    return homes | {key: table for table, section in TABLES.items() for key in key_types(section)}


def _fixed_tables(
    tables: Mapping[str, Any], path: Path | None, origins: dict[str, Origin]
) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for table, section in TABLES.items():
        keys = convert_keys(tables.get(table, {}), section, Place(str(path), table), _homes())
        sections[table] = keys
        for key in keys:
            origins[f"{table}.{key}"] = Origin("file", str(path))
            if path is not None and f"{table}.{key}" in _PATHS:
                keys[key] = _beside(path, keys[key])
    return sections


def _beside(path: Path, text: str) -> str:
    """Paths in a file count from that file's folder, so that it works from wherever the server is started."""
    if not text.strip() or text.startswith("~") or Path(text).is_absolute():
        return text
    return str(path.expanduser().absolute().parent / text)


def _apply_environment(
    environ: Mapping[str, str], sections: dict[str, dict[str, Any]], origins: dict[str, Origin]
) -> None:
    for name, text in read_settings(environ).items():
        table, key = VARIABLES[name]
        sections[table][key] = from_text(text, key_types(TABLES[table])[key], name)
        origins[f"{table}.{key}"] = Origin("environment", name)


def _apply_flags(
    flags: Mapping[str, object], sections: dict[str, dict[str, Any]], origins: dict[str, Origin]
) -> None:
    for dotted, value in flags.items():
        if value is None:
            continue
        table, _, key = dotted.partition(".")
        flag = FLAGS[dotted]
        sections[table][key] = from_toml(value, key_types(TABLES[table])[key], flag)
        origins[dotted] = Origin("flag", flag)


def _models(tables: Any, path: Path, origins: dict[str, Origin]) -> dict[str, ModelSpec]:
    if not isinstance(tables, dict):
        raise ConfigError(f"{path}: each model is a table of its own, [models.NAME].")
    return {name: _model(name, table, path, origins) for name, table in tables.items()}


def _model(name: str, table: Any, path: Path, origins: dict[str, Origin]) -> ModelSpec:
    place = Place(str(path), model_table(name))
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: [models] {name} is not a table; a model is [models.NAME].")
    below = {key: table[key] for key in (*MODEL_TABLES, "options") if key in table}
    flat = {key: value for key, value in table.items() if key not in below}
    keys = convert_keys(flat, ModelSpec, place, _homes())
    if "source" in keys:
        keys["source"] = _source(path, keys["source"], place)
        keys = _usual_engine(keys["source"]) | keys
    if "adapters" in keys:
        beside = {each: _source(path, source, place) for each, source in keys["adapters"].items()}
        keys["adapters"] = beside
    for part in MODEL_TABLES.keys() & below.keys():
        keys[part] = _model_table(path, below[part], part, place)
    spec = ModelSpec(**keys)
    if "options" in below:
        inner = Place(place.file, f"{place.table}.options")
        if spec.engine in ENGINE_OPTIONS:  # a plugin's engine checks its own
            convert_keys(below["options"], ENGINE_OPTIONS[spec.engine], inner)
        spec = msgspec.structs.replace(spec, options=below["options"])
    for key in flat:
        origins[f"models.{name}.{key}"] = Origin("file", str(path))
    for part, inside in below.items():
        for key in inside:
            origins[f"models.{name}.{part}.{key}"] = Origin("file", str(path))
    return spec


def _usual_engine(source: str) -> dict[str, Any]:
    """What runs a source where the file does not say; empty where that is what always runs."""
    return {"engine": "llama"} if is_gguf_source(source) else {}


def _model_table(path: Path, table: Any, part: str, place: Place) -> Section:
    inner = Place(place.file, f"{place.table}.{part}")
    keys = convert_keys(table, MODEL_TABLES[part], inner)
    if "draft" in keys:
        keys["draft"] = _source(path, keys["draft"], inner, "draft")
    return MODEL_TABLES[part](**keys)


def _source(path: Path, source: str, place: Place, key: str = "source") -> str:
    if re.match(r"[A-Za-z][A-Za-z0-9+.]+:", source):
        return source
    folder = _beside(path, source)
    is_hub_name = looks_like_a_hub_name(source) and not is_gguf_source(source)
    if is_hub_name and not Path(folder).exists():
        raise ConfigError(
            f"{place} {key} is {source!r}, which is no folder."
            f" From the Hugging Face hub it is written 'hf:{source}'."
        )
    return folder


def _check_folders(settings: Settings, origins: Mapping[str, Origin], path: Path | None) -> None:
    """A plugin folder that was named and is not there could be missing safety rules: never go on without it."""
    folder = settings.plugins.dir
    if folder is not None and not Path(folder).expanduser().is_dir():
        place = where("plugins.dir", settings, origins, path)
        raise ConfigError(f"{place} is {folder!r}, and there is no such folder.")
