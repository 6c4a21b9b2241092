"""What a setting is: its sentence, what it may be, its default under each preset, and which modules read it."""

import ast
import textwrap
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nrt_cli.config import RunConfig, configs_dir, dump_yaml, resolve
from nrt_cli.config.validation import nearest_key, schema_fields, sentences
from nrt_cli.errors import ConfigError

WIDTH = 100
"""Columns of a comment."""


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
            sentence = textwrap.fill(said[prefix + name], WIDTH - len(indent), break_on_hyphens=False)
            text += textwrap.indent(sentence, f"{indent}# ") + "\n"
            if any(key.startswith(f"{prefix}{name}.") for key in said):
                text += f"{indent}{name}:\n{lines(value, f'{prefix}{name}.')}"
            else:
                text += textwrap.indent(dump_yaml({name: value}), indent)
        return text

    return lines(config.model_dump(mode="json"), "")


@cache
def readers() -> dict[str, list[str]]:
    """Key -> names of the modules that read it, except for those that check the config itself.

    Found in the program's own source: an expression's class is followed from annotations and assignments, as far as
    these go, so `config.train.steps` is read wherever `config` is a `RunConfig`. A section that is handed on whole is
    read where its keys are taken from it.
    """
    trees, found = {}, defaultdict(list)
    for spec in filter(None, map(find_spec, ("nrt_cli", "nrt_analysis"))):
        for folder in map(Path, spec.submodule_search_locations or ()):
            for file in sorted(folder.rglob("*.py")):
                module = ".".join((folder.name, *file.relative_to(folder).with_suffix("").parts))
                trees[module.removesuffix(".__init__")] = ast.parse(file.read_bytes())
    source = Source()
    for tree in trees.values():
        source.learn(tree)
    for module, tree in trees.items():
        if not module.startswith("nrt_cli.config"):
            for key in source.reads(tree):
                found[key].append(module)
    return found


class Source(ast.NodeVisitor):
    """Collects the keys that are taken from sections."""

    def __init__(self) -> None:
        self.prefixes = {"RunConfig": "", "RunSettings": ""}
        """A section's class -> what its keys begin with."""
        self.members, self.keys = dict[tuple[str, str], str](), set[str]()
        """A class and the name of an attribute or method -> class of what it gives; "" has functions and classes."""
        for key, _, inner in schema_fields(RunConfig):
            if inner:
                self.prefixes[inner.__name__] = f"{key}."
                owners = [kind for kind, prefix in self.prefixes.items() if f"{prefix}{key.rpartition('.')[2]}" == key]
                self.members |= {(kind, key.rpartition(".")[2]): inner.__name__ for kind in owners}
            else:
                self.keys.add(key)
        self.members |= {(kind, "model_copy"): kind for kind in self.prefixes}
        self.methods: dict[tuple[str, str], ast.FunctionDef] = {}
        """A section's class and a method's name -> the method: who calls it reads what it reads."""
        self.names, self.found = dict[str, str](), set[str]()

    def learn(self, tree: ast.Module) -> None:
        """Take note of what classes and functions say of themselves."""

        def note(of: str, name: str, annotation: ast.expr | None) -> None:
            kind = _class(annotation)
            if kind and (kind in self.prefixes or (of, name) not in self.members):
                self.members[of, name] = kind

        for owner in ast.walk(tree):
            if not isinstance(owner, ast.ClassDef | ast.Module):
                continue
            of = owner.name if isinstance(owner, ast.ClassDef) else ""
            self.members["", of] = of
            for node in owner.body:
                match node:
                    case ast.AnnAssign(ast.Name(name), annotation):
                        note(of, name, annotation)
                    case ast.FunctionDef(name):
                        note(of, name, node.returns)
                        if of in self.prefixes:
                            self.methods[of, name] = node
                        given = {arg.arg: arg.annotation for arg in node.args.args}
                        for inner in (one for one in ast.walk(node) if isinstance(one, ast.Assign)):
                            for pair in _pairs(inner):
                                match pair:
                                    case ast.Attribute(ast.Name("self"), name), ast.Name(known):
                                        note(of, name, given.get(known))

    def reads(self, tree: ast.AST) -> set[str]:
        """Keys that a piece of source reads."""
        self.found = set()
        self.visit(tree)
        return self.found

    def kind(self, node: ast.AST) -> str:
        """The class of an expression; empty where it cannot be told."""
        match node:
            case ast.Name(id=name):
                return self.names.get(name, "")
            case ast.Attribute(value, name):
                return self.members.get((self.kind(value), name), "")
            case ast.Call(ast.Name(id=name)):
                return self.members.get(("", name), "")
            case ast.Call(method):
                return self.kind(method)
            case ast.IfExp(_, value, other):
                return self.kind(value) or self.kind(other)
        return ""

    def visit(self, node: ast.AST) -> None:
        """Look at an expression or statement with what the names in it are there."""
        outside, within = self.names, dict[str, str]()
        match node:
            case ast.FunctionDef(args=given) | ast.AsyncFunctionDef(args=given):
                arguments = (*given.posonlyargs, *given.args, *given.kwonlyargs)
                within = {arg.arg: _class(arg.annotation) for arg in arguments if arg.arg != "self"}
            case ast.ClassDef(name):
                within = {"self": name}
            case ast.Lambda(given):  # one that takes a config is in a table of such
                within = {arg.arg: "RunConfig" for arg in given.args if arg.arg in ("c", "config")}
            case ast.Call(ast.Name("Setting"), [_, ast.Constant(str(key))]):  # of verl's, which a key of ours decides
                self.found |= {key} & self.keys
            case ast.Attribute(value, name) if (kind := self.kind(value)) in self.prefixes:
                self.found |= {self.prefixes[kind] + name} & self.keys
                if method := self.methods.get((kind, name)):
                    self.names = outside | {"self": kind}
                    self.generic_visit(method)
                    self.names = outside
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            self.names = outside | within
        self.generic_visit(node)
        self.names = outside
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            self.names[node.target.id] = _class(node.annotation)
        if isinstance(node, ast.Assign):
            self.names |= {to.id: self.kind(value) for to, value in _pairs(node) if isinstance(to, ast.Name)}


def _pairs(node: ast.Assign) -> list[tuple[ast.expr, ast.expr]]:
    """What is assigned to what; of `a, b = x, y` both."""
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=False))
    return [(target, value)]


def _class(annotation: ast.expr | None) -> str:
    """The one class that an annotation names, None beside it or not."""
    text = annotation.value if isinstance(annotation, ast.Constant) else annotation and ast.unparse(annotation)
    named = [name for part in str(text).split("|") if (name := part.strip("'\" ")) != "None"]
    return named[0].rpartition(".")[2] if len(named) == 1 else ""
