"""How much each operator's quantization changes the loss: gradients, the signed estimate, direct measurement."""
