"""An ordinary Flower app: softmax regression on handwritten digits."""
