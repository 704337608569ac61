"""Writes an ONNX file as a float `.tflite`, with the names of its inputs and outputs.

Request: `model` (an ONNX file without open axes) and `artifact` (the file to write).
Reply: `version`.
"""

import os
import tempfile

import onnx2tf


def run(request: dict) -> dict:
    """Convert by onnx2tf's own flatbuffer writer, which needs no TensorFlow."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            onnx2tf.convert(
                input_onnx_file_path=request["model"],
                output_folder_path=folder,
                tflite_backend="flatbuffer_direct",
                copy_onnx_input_output_names_to_tflite=True,
                # The model is in normal form: folded already, and its names are to stay.
                not_use_onnxsim=True,
                disable_model_save=False,
                non_verbose=True,
            )
        # It raises whatever its steps raise, and leaves by `sys.exit` where it gives up.
        except (Exception, SystemExit) as e:
            raise ValueError(_line(e)) from e
        made = [name for name in os.listdir(folder) if name.endswith("_float32.tflite")]
        if len(made) != 1:
            raise ValueError("it ended without an error and wrote no float file")
        os.replace(os.path.join(folder, made[0]), request["artifact"])
    return {"version": onnx2tf.__version__}


def _line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:400]}" if lines else type(error).__name__
