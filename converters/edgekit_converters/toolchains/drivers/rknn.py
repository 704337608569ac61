"""Rockchip's toolkit: finds ranges, builds a `.rknn`, and runs its arithmetic in its simulator.

Request, whatever is asked: `model` (ONNX file), `inputs` (`[name, shape]` each, in the order of the
graph) and `target_platform`; then one of two things.

- `do: ranges` runs the calibration samples `ranges/SAMPLE.INPUT.npy` (`samples` of them) and leaves
  the quantised form of the model in the folder `quantised`, by `quantized_dtype`,
  `quantized_algorithm` and `quantized_method` of the toolkit.
- `do: build` makes `artifact` of that form, with the tensors of `keep_float` in half precision, or
  of the ONNX file where `quantised` is null; null for `artifact` makes no file. With `feeds`
  (`.npy` by input, axis 0 counts samples) the simulator answers them into `answers` (`.npz` by
  position of the output). Reply: the compiler's table of layers.

The toolkit says what is wrong on its output, and by a return code; it exits 0 all the same.
"""

import os
import re
import shutil
import sys
import types

import numpy as np

_FORM = ("model", "data", "quantization.cfg")
_NO_CUSTOM = "custom_quantize_layers: {}\n"
_TABLE = "Network Layer Information Table"
_ROW = re.compile(
    r"\b\d+ +(?P<type>\S+) +(?P<datatype>\S+) +(?P<target>CPU|GPU|NPU) +(?P<inputs>\S+)"
    r" +(?P<output>\S+) +\d+/\d+/(?P<cycles>\d+) +\S+ *(?P<name>\S*)"
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# It says so of every quantised model, and builds it.
_HARMLESS = "Unkown op target"


def run(request: dict) -> dict:
    """Do what `do` says."""
    toolkit = _toolkit()
    try:
        return _ranges(toolkit, request) if request["do"] == "ranges" else _build(toolkit, request)
    finally:
        toolkit.release()


def _ranges(toolkit, request: dict) -> dict:
    _load(toolkit, request)
    # Names in the list of samples are parted by blanks, so none of ours may hold one.
    os.symlink(request["ranges"], "samples")
    with open("samples.txt", "w", encoding="utf-8") as file:
        for sample in range(request["samples"]):
            names = [f"samples/{sample}.{i}.npy" for i in range(len(request["inputs"]))]
            file.write(" ".join(names) + "\n")
    _call("hybrid_quantization_step1", toolkit.hybrid_quantization_step1, dataset="samples.txt")
    stem = os.path.splitext(os.path.basename(request["model"]))[0]
    for suffix in _FORM:
        if not os.path.isfile(f"{stem}.{suffix}"):
            raise ValueError(f"it wrote no quantised form: {stem}.{suffix} is not there")
        shutil.move(f"{stem}.{suffix}", os.path.join(request["quantised"], f"model.{suffix}"))
    return {}


def _build(toolkit, request: dict) -> dict:
    kept = []
    if request["quantised"] is None:
        _load(toolkit, request)
        _call("build", toolkit.build, do_quantization=False)
    else:
        for suffix in _FORM:
            shutil.copy(os.path.join(request["quantised"], f"model.{suffix}"), f"model.{suffix}")
        kept = _keep_float("model.quantization.cfg", request["keep_float"])
        _call(
            "hybrid_quantization_step2",
            toolkit.hybrid_quantization_step2,
            *(f"model.{suffix}" for suffix in _FORM),
        )
    layers = _layers(_printed())
    if request["artifact"] is not None:
        _call("export_rknn", toolkit.export_rknn, request["artifact"])
    if request["feeds"] is not None:
        _simulate(toolkit, request)
    return {"layers": layers, "kept": kept}


def _simulate(toolkit, request: dict) -> None:
    _call("init_runtime", toolkit.init_runtime)
    names = [name for name, _ in request["inputs"]]
    feeds = [np.load(request["feeds"][name], mmap_mode="r") for name in names]
    # It asks for as many formats as there are inputs, and heeds those of four axes.
    formats = ["nchw"] * len(feeds) if any(feed.ndim == 5 for feed in feeds) else None
    answers = []
    for sample in range(len(feeds[0])):
        inputs = [np.ascontiguousarray(feed[sample]) for feed in feeds]
        outputs = toolkit.inference(inputs=inputs, data_format=formats)
        if outputs is None:
            raise ValueError(f"inference of sample {sample}: {_reason() or 'no reason given'}")
        answers.append(outputs)
    columns = zip(*answers, strict=True)
    np.savez(request["answers"], **{str(i): np.stack(column) for i, column in enumerate(columns)})


def _toolkit():
    """The toolkit, without PyTorch: it imports it for one quantiser and one loader, unused here."""
    torch, layers = types.ModuleType("torch"), types.ModuleType("torch.nn")
    torch.nn, layers.Module = layers, object
    torch.no_grad = lambda: lambda function: function
    sys.modules.update({"torch": torch, "torch.nn": layers})
    from rknn.api import RKNN

    # Only then does the compiler print its table of layers.
    return RKNN(verbose=True)


def _load(toolkit, request: dict) -> None:
    names = ("quantized_dtype", "quantized_algorithm", "quantized_method")
    options = {name: request[name] for name in names if name in request}
    _call("config", toolkit.config, target_platform=request["target_platform"], **options)
    _call(
        "load_onnx",
        toolkit.load_onnx,
        request["model"],
        inputs=[name for name, _ in request["inputs"]],
        input_size_list=[shape for _, shape in request["inputs"]],
    )


def _keep_float(path: str, tensors: "list[str]") -> "list[str]":
    """Ask for half precision where the form knows the tensor; which those are."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    known = set(re.findall(r"^    (\S.*):$", text, flags=re.MULTILINE))
    kept = [name for name in tensors if name in known]
    if tensors and not kept:
        raise ValueError(f"it knows none of the tensors to keep in float: {', '.join(tensors[:3])}")
    if kept:
        if _NO_CUSTOM not in text:
            raise ValueError(f"{path} has another form than expected")
        lines = "".join(f"    {name}: float16\n" for name in kept)
        text = text.replace(_NO_CUSTOM, f"custom_quantize_layers:\n{lines}", 1)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    return kept


def _call(name: str, function, *args, **options) -> None:
    """Call the toolkit; its words where it raises or returns anything but 0."""
    try:
        status = function(*args, **options)
    except Exception as e:  # it raises whatever its own code and its libraries raise
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        raise ValueError(f"{name}: {lines[-1] if lines else type(e).__name__}") from e
    if status != 0:
        raise ValueError(f"{name}: {_reason() or f'it returned {status}'}")


def _reason() -> str:
    """The last error that it printed."""
    errors = re.findall(r"^E (.*)$", _printed(), flags=re.MULTILINE)
    told = [line.strip() for line in errors if line.strip() and _HARMLESS not in line]
    return told[-1] if told else ""


def _printed() -> str:
    """What this process has printed so far: its standard output is the log, a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with open("/proc/self/fd/1", encoding="utf-8", errors="replace") as file:
        return _COLOURS.sub("", file.read()).replace("\r", "\n")


def _layers(printed: str) -> "list[dict]":
    table = printed.rpartition(_TABLE)[2]
    # The next table follows after a line that says which pass has ended.
    rows = [_ROW.search(line) for line in table.partition("end: rknn::")[0].splitlines()]
    found = [{**row.groupdict(), "cycles": int(row["cycles"])} for row in rows if row is not None]
    if not found:
        raise ValueError(f"build: it printed no table of layers; {_reason()}")
    return found
