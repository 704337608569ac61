"""PT2: an archive of `torch.export.save`, rewritten so that loading it runs nothing of its maker's.

`torch.export.load` (2.13) can be made to run code by its file in seven ways: example inputs are
unpickled, unsafely where the safe way fails; weights and constants marked `use_pickle` are, and
script and opaque objects; shared libraries below `data/aotinductor` are opened; sizes are given to
`sympy.sympify`, which evaluates them as Python; checks of inputs are Python source that is
compiled; operators are any dotted name below `torch`; and descriptions of containers name modules
to import. So the archive that torch reads is one written
here, from entries and values that are known to be plain: raw weights, and a graph of `aten`
operators on sizes that are arithmetic. Example inputs and stack traces are left out.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.errors import ModelError
from edgekit_converters.sources import archive

MAX_GRAPH_BYTES = 256 << 20
MAX_NODES = 100_000

_GRAPH = "models/model.json"
_CONFIGS = {
    "data/weights/": "data/weights/model_weights_config.json",
    "data/constants/": "data/constants/model_constants_config.json",
}
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_COPIED = ("archive_format", "archive_version", "byteorder", ".data/version")
_SAVE_AGAIN = "export plain tensors and modules, and save with torch.export.save of torch 2.8 or up"

_OPERATOR = re.compile(
    # from_file maps, and may make, any file.
    r"torch\.ops\.(aten|prims|torchvision|quantized_decomposed)\.(?!from_file)"
    r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|associative_scan)"
    r"|torch\.sym_(float|int|ite|max|min|not|sum)"
    r"|torch\._sym_sqrt"
    r"|math\.(ceil|floor|trunc)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_"
    r"|not_|getitem|lshift|rshift)"
)
# What the arithmetic of sizes is written with.
_FUNCTIONS = frozenset(
    (
        *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Abs", "Max", "Min"),
        *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Mod", "PythonMod", "FloorDiv"),
        *("CleanDiv", "CeilDiv", "ModularIndexing", "Where", "Piecewise", "CeilToInt"),
        *("FloorToInt", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv"),
        *("IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "ToFloat", "Identity"),
        *("StrictLessThan", "StrictGreaterThan", "LessThan", "GreaterThan", "Equality"),
        *("Unequality", "IsNonOverlappingAndDenseIndicator", "floor", "ceiling"),
    )
)
_SYMBOL = re.compile(r"[A-Za-z]\w{0,63}")
_EXPRESSION_NODES = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp),
    *(ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop),
)
_MAX_EXPRESSION = 2000
_MAX_EXPONENT = 64
_CONTAINERS = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})


def rewrite(source: Path, target: Path) -> None:
    """Write the archive that torch may read.

    Raises:
        ModelError: something in the archive is more than plain weights and a plain graph; the
            message names it.
    """
    with archive.opened(source) as entries:
        root = _root(entries, source)
        names = {name.removeprefix(root) for name in entries.namelist()}
        _require_plain(names, source)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
            for name in _COPIED:
                if name in names:
                    _copy(entries, out, root, name)
            _copy_weights(entries, out, root, names, source)
            graph = _json(entries, root + _GRAPH, source)
            _check(graph, source)
            _drop_code(graph, source)
            _write(out, root + _GRAPH, json.dumps(graph).encode())
            _write(out, root + _SAMPLE_INPUTS, b"")


def _root(entries: zipfile.ZipFile, source: Path) -> str:
    """The folder that all entries lie in."""
    roots = {name.partition("/")[0] for name in entries.namelist()}
    if len(roots) != 1:
        raise ModelError(f"{source} has entries beside its folder", hint=_SAVE_AGAIN)
    return f"{roots.pop()}/"


def _require_plain(names: set[str], source: Path) -> None:
    models = sorted(name for name in names if name.startswith("models/"))
    if models != [_GRAPH]:
        raise ModelError(
            f"{source} holds {len(models)} programs, and one with the name 'model' is read",
            hint="save a single ExportedProgram with torch.export.save",
        )
    for name in sorted(names):
        if name.startswith("data/aotinductor/"):
            raise ModelError(
                f"{source}: {name!r} is compiled code, which is never run", hint=_SAVE_AGAIN
            )
    for config in _CONFIGS.values():
        if config not in names:
            raise ModelError(f"{source} lacks {config!r}", hint=_SAVE_AGAIN)


def _copy_weights(
    entries: zipfile.ZipFile, out: zipfile.ZipFile, root: str, names: set[str], source: Path
) -> None:
    """Copy raw weights and constants with the table that describes them; refuse pickled ones."""
    for folder, config_name in _CONFIGS.items():
        table = _json(entries, root + config_name, source)
        payloads = table.get("config") if isinstance(table, dict) else None
        if not isinstance(payloads, dict):
            raise ModelError(f"{source}: {config_name!r} is no table of weights", hint=_SAVE_AGAIN)
        files = set()
        for tensor, payload in payloads.items():
            facts = payload if isinstance(payload, dict) else {}
            file = facts.get("path_name")
            if facts.get("use_pickle") is not False:
                raise ModelError(
                    f"{source}: {tensor!r} is a pickled object, which could run any code when it is"
                    " loaded",
                    hint=f"{_SAVE_AGAIN}; or give --trust-pickle where you trust its maker",
                )
            if not isinstance(file, str) or not re.fullmatch(r"(weight|tensor)_\d{1,9}", file):
                raise ModelError(f"{source}: {tensor!r} lies in {file!r}, which is no weights file")
            if folder + file not in names:
                raise ModelError(f"{source}: {tensor!r} lies in {file!r}, which is not there")
            files.add(folder + file)
        _check(table, source)
        for name in sorted(files):
            _copy(entries, out, root, name)
        _write(out, root + config_name, json.dumps(table).encode())


def _check(value: Any, source: Path) -> None:
    """Refuse what torch would look up, import or evaluate; drop descriptions, in place."""
    nodes = 0
    for part in _dicts(value):
        if isinstance(part.get("metadata"), dict):
            part["metadata"] = {}
        target = part.get("target")
        nodes += target is not None
        if nodes > MAX_NODES:
            raise ModelError(f"{source} has more than {MAX_NODES} nodes")
        for key in ("target", "as_operator"):
            name = part.get(key)
            if name is not None and not (isinstance(name, str) and _OPERATOR.fullmatch(name)):
                raise ModelError(
                    f"{source}: the operator {name!r} is not one of torch's own",
                    hint="write it with torch's operators, or convert it where you trust it",
                )
        if "expr_str" in part:
            _require_arithmetic(part["expr_str"], source)
        for key in ("in_spec", "out_spec"):
            if part.get(key):
                _require_plain_containers(part[key], key, source)
        for key in ("as_custom_obj", "custom_obj", "custom_obj_values"):
            if part.get(key):
                raise ModelError(
                    f"{source} holds a script object ({key}), which is not read", hint=_SAVE_AGAIN
                )
    if isinstance(value, dict):
        for symbol in value.get("range_constraints") or ():
            _require_arithmetic(symbol, source)


def _drop_code(program: Any, source: Path) -> None:
    """Leave out checks of inputs, which torch would compile, and classes, which it would make."""
    if not isinstance(program, dict) or not isinstance(program.get("graph_module"), dict):
        raise ModelError(f"{source}: {_GRAPH!r} is no exported program", hint=_SAVE_AGAIN)
    program["guards_code"] = []
    program["graph_module"]["treespec_namedtuple_fields"] = {}


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            yield part
            pending += part.values()
        elif isinstance(part, list):
            pending += part


def _require_arithmetic(text: Any, source: Path) -> None:
    """Refuse a size that is more than numbers, symbols and the functions of sizes."""
    error = ModelError(f"{source}: the size {str(text)[:80]!r} is not arithmetic", hint=_SAVE_AGAIN)
    if not isinstance(text, str) or len(text) > _MAX_EXPRESSION:
        raise error
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise error from e
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    named = {
        id(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) == "Symbol"
    }
    for node in ast.walk(tree):
        if not isinstance(node, _EXPRESSION_NODES):
            raise error
        if isinstance(node, ast.Name):
            allowed = node.id in _FUNCTIONS if id(node) in called else _SYMBOL.fullmatch(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            allowed = id(node) in named and _SYMBOL.fullmatch(node.value)
        elif isinstance(node, ast.Constant):
            allowed = isinstance(node.value, bool | int | float) and abs(node.value) < 2**63
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            power = node.right.value if isinstance(node.right, ast.Constant) else None
            allowed = isinstance(power, int) and abs(power) <= _MAX_EXPONENT
        else:
            allowed = True
        if not allowed:
            raise error


def _require_plain_containers(text: Any, key: str, source: Path) -> None:
    """Refuse containers whose description names a class: torch would import its module."""
    try:
        described = json.loads(text)
    except (TypeError, ValueError, RecursionError) as e:
        raise ModelError(f"{source}: its {key} cannot be read", hint=_SAVE_AGAIN) from e
    for part in _dicts(described):
        kind = part.get("type")
        context = part.get("context")
        if kind not in _CONTAINERS or (isinstance(context, str) and "__enum__" in context):
            raise ModelError(
                f"{source} takes or gives a {kind}, and tuples, lists and dicts are read",
                hint="give the model's forward plain tensors",
            )


def _json(entries: zipfile.ZipFile, name: str, source: Path) -> Any:
    if entries.getinfo(name).file_size > MAX_GRAPH_BYTES:
        raise ModelError(f"{source}: {name!r} has more than {MAX_GRAPH_BYTES} bytes")
    try:
        return json.loads(entries.read(name))
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{source}: {name!r} is damaged: {e}", hint=_SAVE_AGAIN) from e


def _copy(entries: zipfile.ZipFile, out: zipfile.ZipFile, root: str, name: str) -> None:
    with (
        entries.open(root + name) as read,
        out.open(zipfile.ZipInfo(root + name), "w", force_zip64=True) as write,
    ):
        shutil.copyfileobj(read, write, 1 << 20)


def _write(out: zipfile.ZipFile, name: str, content: bytes) -> None:
    out.writestr(zipfile.ZipInfo(name), content)
