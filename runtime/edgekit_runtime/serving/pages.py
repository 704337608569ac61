"""Pages: what the server says of itself and of its models, in the fields that clients know.

Field names are those of Open Inference Protocol v2 and, for configuration and statistics, of
Triton's extensions of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit import __version__
from edgekit.manifest import TensorSpec
from edgekit_runtime.serving.models import Models
from edgekit_runtime.serving.served import Served
from edgekit_runtime.serving.stats import Snapshot

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
    "system_shared_memory",
)
_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "litert": "litert_tflite"}


def server(models: Models) -> dict[str, Any]:
    """`/v2`. Bundles that nobody we trust signed are listed by name under `insecure`."""
    page: dict[str, Any] = {
        "name": "edgekit",
        "version": __version__,
        "extensions": EXTENSIONS,
    }
    strangers = [f"{m.name} {m.version}" for m in models.served() if m.verified_by is None]
    if strangers:
        page["insecure"] = strangers
    return page


def metadata(served: Served, versions: Sequence[str]) -> dict[str, Any]:
    """`/v2/models/{m}`."""
    return {
        "name": served.name,
        "versions": versions,
        "platform": _platform(served),
        "inputs": [_tensor(spec) for spec in served.inputs],
        "outputs": [_tensor(spec) for spec in served.outputs],
        "properties": {
            "variant": served.variant.name,
            "precision": served.variant.precision,
            "engine": f"{served.variant.engine} {served.engine_version}",
            "accelerator": served.variant.accelerator,
            "providers": ",".join(served.providers),
            "bundle": served.digest,
        },
    }


def config(served: Served) -> dict[str, Any]:
    """`/v2/models/{m}/config`. `max_batch_size` 0 says that shapes are given whole."""
    return {
        "name": served.name,
        "platform": _platform(served),
        "backend": served.variant.engine,
        "max_batch_size": 0,
        "input": [_dims(spec) for spec in served.inputs],
        "output": [_dims(spec) for spec in served.outputs],
        "parameters": {
            "variant": {"string_value": served.variant.name},
            "variants": {"string_value": ",".join(rung.name for rung in served.rungs)},
            "runs": {"string_value": served.plan.place},
            "batch_limit": {"string_value": str(served.plan.max_batch)},
        },
    }


def statistics(models: Sequence[Served]) -> dict[str, Any]:
    """`/v2/models[/{m}]/stats`."""
    return {"model_stats": [_stats(served, served.snapshot()) for served in models]}


def _stats(served: Served, now: Snapshot) -> dict[str, Any]:
    executions = now.executions
    cache = served.cache
    hit = (cache.hits, cache.hit_ns) if cache else (0, 0)
    miss = (cache.misses, cache.miss_ns) if cache else (0, 0)
    return {
        "name": served.name,
        "version": served.version,
        "last_inference": now.last_ms,
        "inference_count": now.inferences,
        "execution_count": executions,
        "inference_stats": {
            "success": _duration(now.succeeded, now.succeeded_ns),
            "fail": _duration(now.failed, now.failed_ns),
            "queue": _duration(now.succeeded, now.queue_ns),
            "compute_input": _duration(executions, now.stack_ns),
            "compute_infer": _duration(executions, now.run_ns),
            "compute_output": _duration(executions, now.split_ns),
            "cache_hit": _duration(*hit),
            "cache_miss": _duration(*miss),
            "rejected": _duration(now.rejected, 0),
            "cancel": _duration(now.cancelled, 0),
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(count, stack),
                "compute_infer": _duration(count, run),
                "compute_output": _duration(count, split),
            }
            for rows, (count, stack, run, split) in sorted(now.batches.items())
        ],
    }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


def _platform(served: Served) -> str:
    return _PLATFORMS.get(served.variant.engine, served.variant.engine)


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _dims(spec: TensorSpec) -> dict[str, Any]:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": spec.shape}
