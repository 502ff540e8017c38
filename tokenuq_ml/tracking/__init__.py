"""Experiment trackers that trainings and evaluations report to: TensorBoard, MLflow, Weights & Biases, Trackio."""
