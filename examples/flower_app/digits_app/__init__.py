"""An ordinary Flower app: logistic regression of scikit-learn on handwritten digits."""
