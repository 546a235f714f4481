"""tvm_mpq: mixed-precision compilation of ONNX networks with Apache TVM."""
