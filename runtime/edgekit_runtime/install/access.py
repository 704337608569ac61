"""Access: what of a board's hardware its engines touch, so that a unit can close the rest.

The nodes are those that the drivers are known to make; no unit was started on such a
board. A name that is not there is passed over by systemd, so old and new names of one driver stand
side by side. Where the names are not known the unit leaves devices open, and says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.profile import DeviceProfile, EngineSpec
from edgekit.structs import Strict


class Access(Strict, frozen=True, kw_only=True):
    """What the daemon must reach.

    Attributes:
        nodes: devices as `DeviceAllow=` takes them; None where they are not known.
        groups: that own these nodes.
        makes_code: whether a library may write machine code and then run it.
    """

    nodes: tuple[str, ...] | None = ()
    groups: tuple[str, ...] = ()
    makes_code: bool = False


_DRM = ("char-drm",)
_HEAPS = ("char-dma_heap",)
_GRAPHICS = ("render", "video")

# By the library or provider that the profile names for an accelerator.
_BY_PROVIDER: Mapping[str, Access] = {
    # HailoRT's PCIe driver.
    "libhailort.so": Access(nodes=("char-hailo*", "/dev/hailo0", "/dev/hailo1"), makes_code=True),
    # Rockchip's RKNPU: a node of its own in old kernels, one of DRM's in new ones.
    "librknnrt.so": Access(nodes=(*_DRM, *_HEAPS, "/dev/rknpu"), groups=_GRAPHICS, makes_code=True),
    # Coral on USB and on PCIe.
    "libedgetpu.so.1": Access(
        nodes=("char-usb_device", "char-apex", "/dev/apex_0"),
        groups=("plugdev", "apex"),
        makes_code=True,
    ),
    # Vivante's kernel driver in NXP's BSP.
    "libvx_delegate.so": Access(
        nodes=("char-galcore", "/dev/galcore"), groups=("video",), makes_code=True
    ),
    "libethosu_delegate.so": Access(nodes=("char-ethosu*", "/dev/ethosu0"), makes_code=True),
    # Qualcomm's FastRPC to the DSP.
    "QNNExecutionProvider": Access(
        nodes=("/dev/fastrpc-cdsp", "/dev/fastrpc-cdsp-secure", *_HEAPS),
        groups=("fastrpc", "render"),
        makes_code=True,
    ),
    "openvino_intel_gpu_plugin": Access(nodes=_DRM, groups=_GRAPHICS, makes_code=True),
    "openvino_intel_npu_plugin": Access(nodes=("char-accel",), groups=("render",), makes_code=True),
}
# Engines that were seen to serve on a CPU where no page may be written and then run.
_KEEP_CODE = ("onnxruntime", "litert")


def access_of(profile: DeviceProfile) -> Access:
    """What the engines of a board touch, all together."""
    found = [_of(spec) for spec in profile.engines]
    nodes: list[str] | None = []
    for access in found:
        nodes = None if nodes is None or access.nodes is None else [*nodes, *access.nodes]
    return Access(
        nodes=None if nodes is None else tuple(dict.fromkeys(nodes)),
        groups=tuple(dict.fromkeys(group for access in found for group in access.groups)),
        makes_code=any(access.makes_code for access in found),
    )


def _of(spec: EngineSpec) -> Access:
    if spec.accelerator == "cpu":
        return Access(makes_code=spec.name not in _KEEP_CODE)
    known = [_BY_PROVIDER[p.name] for p in spec.providers if p.name in _BY_PROVIDER]
    # NVIDIA's boards have dozens of nodes under changing names.
    return known[0] if known else Access(nodes=None, groups=_GRAPHICS, makes_code=True)
