"""The steps that bring an ONNX model into normal form, one file a step.

`edgekit_converters.normalise` runs them in order and is what others import. A step changes the
model it is given or returns another one, as its docstring says; what could not be done is a note,
never a guess.
"""
