"""TensorFlow: Keras models, whose gradients are reduced by TensorFlow's own collectives."""
