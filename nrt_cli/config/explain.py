"""What a setting is: its sentence, what it may be, its default under each preset, and which modules read it."""

import ast
import re
import textwrap
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from nrt_cli.config import RunConfig, configs_dir, dump_yaml, resolve
from nrt_cli.config.validation import nearest_key, schema_fields, sentences
from nrt_cli.errors import ConfigError


def explain(key: str) -> dict[str, Any]:
    """A key or section of a run's config. Raises ConfigError where there is none of that name."""
    said = sentences(RunConfig)
    if key not in said:
        raise ConfigError(f"there is no key {key!r}{nearest_key(key, list(said))}.")
    found = {"key": key, "sentence": said[key]}
    inside = {name: sentence for name, sentence in said.items() if name.startswith(f"{key}.")}
    reads = readers()
    if inside:
        return found | {"keys": inside, "read_by": sorted({one for name in inside for one in reads.get(name, ())})}
    presets = sorted(path.stem for path in (configs_dir() / "presets").glob("*.yaml"))
    defaults: dict[str, Any] = {preset: resolve({"preset": preset}).model_dump(mode="json") for preset in presets}
    for part in key.split("."):
        defaults = {preset: values[part] for preset, values in defaults.items()}
    return found | {"value": _kind(key), "defaults": defaults, "read_by": reads.get(key, [])}


def _kind(key: str) -> str:
    """What a key may be, in words."""
    whole = RunConfig.model_json_schema()

    def at(schema: Mapping[str, Any], parts: list[str]) -> Mapping[str, Any]:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        return at(schema["properties"][parts[0]], parts[1:]) if parts else schema

    def said(schema: Mapping[str, Any]) -> str:
        if "anyOf" in schema:
            return " or ".join(map(said, schema["anyOf"]))
        if choices := schema.get("enum") or [schema[name] for name in ("const",) if name in schema]:
            return " | ".join(map(str, choices))
        if schema["type"] == "array":
            items = schema.get("prefixItems") or [schema["items"]]
            return f"list of {f'{len(items)}, each ' if 'prefixItems' in schema else ''}{said(items[0])}"
        words = {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "mapping"}
        bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
        limits = [f"{word} {schema[name]:g}" for name, word in bounds.items() if name in schema]
        return " ".join([words.get(schema["type"], schema["type"]), " and ".join(limits)]).strip()

    return said(at(whole, key.split(".")))


def commented(config: RunConfig) -> str:
    """The resolved config as YAML, every key below its sentence; it reads back as the same config."""
    said = sentences(RunConfig)

    def lines(values: Mapping[str, Any], prefix: str) -> str:
        text, indent = "", "  " * prefix.count(".")
        for name, value in values.items():
            sentence = textwrap.fill(said[prefix + name], 100 - len(indent), break_on_hyphens=False)
            text += textwrap.indent(sentence, f"{indent}# ") + "\n"
            if any(key.startswith(f"{prefix}{name}.") for key in said):
                text += f"{indent}{name}:\n{lines(value, f'{prefix}{name}.')}"
            else:
                text += textwrap.indent(dump_yaml({name: value}), indent)
        return text

    rows = "# Rows are those of the decisions table in CONTRIBUTING.md, where paper and released code differ.\n"
    return rows + lines(config.model_dump(mode="json"), "")


@cache
def readers() -> dict[str, list[str]]:
    """Key -> names of the modules that read it, except for the one that checks the config itself."""
    trees, found = {}, defaultdict(list)
    for spec in filter(None, map(find_spec, ("nrt_cli", "nrt_analysis"))):
        for folder in map(Path, spec.submodule_search_locations or ()):
            for file in sorted(folder.rglob("*.py")):
                module = ".".join((folder.name, *file.relative_to(folder).with_suffix("").parts))
                trees[module.removesuffix(".__init__")] = ast.parse(file.read_bytes())
    source = Source(*trees.values())
    for module, tree in trees.items():
        if module != "nrt_cli.config.schema":
            for key in source.reads(tree):
                found[key].append(module)
    return found


Names = dict[str, set[str]]
"""The names of a module, and attributes that it gives a value with a dot before them -> sections that they may be."""


class Source:
    """Finds the keys that modules of a program, which are `trees`, take from sections.

    Annotations say what a name is, so `config.train.steps` is read where `config` is a `RunConfig`. A section that is
    handed on whole is read where its keys are taken from it.
    """

    def __init__(self, *trees: ast.Module) -> None:
        fields = list(schema_fields(RunConfig))
        self.keys = {key for key, _, inner in fields if not inner}
        self.sections = {key: {inner.__name__} for key, _, inner in fields if inner}
        self.prefixes = {"RunConfig": "", "RunSettings": ""}
        self.prefixes |= {kind: f"{key}." for key, (kind,) in self.sections.items()}
        """A section's class -> what its keys begin with."""
        self.gives: Names = defaultdict(set, {kind: {kind} for kind in self.prefixes})
        """Functions, classes and attributes of all modules."""
        self.methods: dict[str, set[str]] = defaultdict(set)
        """The name of a section's method -> keys that it reads, as do those who call it."""
        nodes = [node for tree in trees for node in ast.walk(tree)]
        own = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name in self.prefixes]
        for node in {*nodes}.difference(*(section.body for section in own)):  # `sections` has those of sections
            match node:
                case ast.FunctionDef(name, returns=said) | ast.AnnAssign(ast.Name(name), said):
                    self.gives[name] |= self.named(said)
        for section in own * 2:  # one of them may call a later one
            for method in section.body:
                if isinstance(method, ast.FunctionDef):
                    self.methods[method.name] |= self.reads(method, {"self": {section.name}})

    def named(self, annotation: ast.expr | None) -> set[str]:
        """The sections that an annotation names."""
        return set(self.prefixes) & set(re.findall(r"\w+", ast.unparse(annotation))) if annotation else set()

    def kinds(self, node: ast.AST, names: Names) -> set[str]:
        """The sections that an expression may be, where names are these."""
        match node:
            case ast.Name(name):
                return names.get(name, set())
            case ast.Call(ast.Name(name)):
                return self.gives[name]
            case ast.Call(ast.Attribute(value, "model_copy")) | ast.Call(value):
                return self.kinds(value, names)
            case ast.Attribute(value, name):
                inner = [self.sections.get(self.prefixes[kind] + name, set()) for kind in self.kinds(value, names)]
                return set().union(*inner) or names.get(f".{name}") or self.gives[name]
            case ast.IfExp(_, value, other):
                return self.kinds(value, names) | self.kinds(other, names)
        return set()

    def names(self, tree: ast.AST) -> Names:
        """What names are in a module or function, wherever in it."""
        names: Names = defaultdict(set)
        nodes = list(ast.walk(tree))
        for node in nodes:
            match node:
                case ast.arg(name, annotation) | ast.AnnAssign(ast.Name(name), annotation):
                    names[name] |= self.named(annotation)
                case ast.Lambda(given):  # one that takes a config is in a table of such
                    names |= {arg.arg: {"RunConfig"} for arg in given.args if arg.arg in ("c", "config")}
        for of_attributes, node in product((True, False), nodes):
            match node:
                case ast.Assign([ast.Tuple(targets)], ast.Tuple(values)) | ast.Assign(targets, values):
                    for target, value in zip(targets, values if isinstance(values, list) else [values], strict=False):
                        if isinstance(target, ast.Attribute) == of_attributes:
                            name = f".{target.attr}" if isinstance(target, ast.Attribute) else ast.unparse(target)
                            names[name] |= self.kinds(value, names)
        return names

    def reads(self, tree: ast.AST, names: Names | None = None) -> set[str]:
        """Keys that a piece of source reads."""
        found, names = set[str](), self.names(tree) | (names or {})
        for node in ast.walk(tree):
            match node:
                case ast.Call(ast.Name("Setting"), [_, ast.Constant(str(key))]):  # verl's, which a key of ours decides
                    found.add(key)
                case ast.Attribute(value, name):
                    for kind in self.kinds(value, names):
                        found |= {self.prefixes[kind] + name} | self.methods[name]
        return found & self.keys
