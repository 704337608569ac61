"""The peers: each a command in a pinned environment of its own.

It reads an ONNX file and the calibration samples, and writes an artefact. It
is started as its user starts it; where its command line takes no samples, a script of the usual
length stands beside this page, and the table says so.
"""

from __future__ import annotations

from benchmarks.build.peers.peer import Peer

_ONNXRUNTIME = ("onnxruntime==1.31.1", "onnx==1.23.2", "sympy==1.14.0")
_NNCF = ("nncf==3.4.0", "openvino==2026.4.1", "onnxruntime==1.31.1", "onnx==1.23.2")
# requests is imported by olive and named by none of its requirements.
_OLIVE = (
    "olive-ai==0.13.0",
    "onnxruntime==1.31.1",
    "onnx==1.23.2",
    "torch==2.15.0",
    "transformers==5.23.0",
    "requests==2.32.5",
)
_AUTO_OPT = "olive auto-opt --precision int8 --device cpu --provider CPUExecutionProvider"
_QUANTIZE = "olive quantize --precision int8 --implementation ort"

PEERS: tuple[Peer, ...] = (
    Peer(
        name="onnxruntime-static",
        environment="onnxruntime",
        requirements=_ONNXRUNTIME,
        script="onnxruntime_static",
        how="script: quant_pre_process, quantize_static (QDQ, per channel, min-max)",
    ),
    Peer(
        name="onnxruntime-dynamic",
        environment="onnxruntime",
        requirements=_ONNXRUNTIME,
        script="onnxruntime_dynamic",
        how="script: quant_pre_process, quantize_dynamic (per channel)",
    ),
    Peer(
        name="olive-auto-opt",
        environment="olive",
        requirements=_OLIVE,
        command=(*_AUTO_OPT.split(), "--disable_telemetry"),
        how=f"{_AUTO_OPT} -m MODEL -o OUT",
    ),
    Peer(
        name="olive-quantize",
        environment="olive",
        requirements=_OLIVE,
        command=(
            *_QUANTIZE.split(),
            "--disable_telemetry",
        ),
        how=f"{_QUANTIZE} -m MODEL -o OUT",
    ),
    Peer(
        name="olive-static",
        environment="olive",
        requirements=_OLIVE,
        script="olive_static",
        how="script: olive.run, OnnxStaticQuantization (QDQ, per channel)",
    ),
    Peer(
        name="nncf-onnx",
        environment="nncf",
        requirements=_NNCF,
        script="nncf_onnx",
        how="script: nncf.quantize on the ONNX model, defaults",
    ),
    Peer(
        name="nncf-openvino",
        environment="nncf",
        requirements=_NNCF,
        script="nncf_openvino",
        artefact="model.xml",
        engine="openvino",
        how="script: openvino.convert_model, nncf.quantize, defaults; another engine",
    ),
    Peer(
        name="openvino-float",
        environment="nncf",
        requirements=_NNCF,
        script="openvino_float",
        artefact="model.xml",
        engine="openvino",
        how="script: openvino.convert_model, float; what that engine alone gives",
    ),
)
"""The peers, in the order of the table; their names are unique."""
