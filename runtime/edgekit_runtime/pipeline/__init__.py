"""Pipeline: what stands before and after a model, run alike by the build and on the board.

`prepare` makes a sample of a picture (an encoded file, or RGB pixels) and says where the picture
lies in it; `finish` makes answers of outputs, boxes in pixels of that picture; `check` tells from
shapes whether steps fit a model. Steps are data (`edgekit.steps`); arrays are numpy's. Pillow is
imported only where a picture must be decoded or resized.
"""

from edgekit_runtime.pipeline.agree import Gap, answers_of, gap, joined, thorough
from edgekit_runtime.pipeline.boxes import Found, detect
from edgekit_runtime.pipeline.check import answers, check, form_of, picture_input
from edgekit_runtime.pipeline.decode import MAX_FILE_BYTES, SERVED_FORMATS, decode
from edgekit_runtime.pipeline.families import output_of
from edgekit_runtime.pipeline.finish import finish
from edgekit_runtime.pipeline.frame import MAX_PIXELS, Frame, frame_of, whole
from edgekit_runtime.pipeline.prepare import Sample, prepare, preprocess
from edgekit_runtime.pipeline.suppress import ious

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "SERVED_FORMATS",
    "Found",
    "Frame",
    "Gap",
    "Sample",
    "answers",
    "answers_of",
    "check",
    "decode",
    "detect",
    "finish",
    "form_of",
    "frame_of",
    "gap",
    "ious",
    "joined",
    "output_of",
    "picture_input",
    "prepare",
    "preprocess",
    "thorough",
    "whole",
]
