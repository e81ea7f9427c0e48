"""The MLflow tracker."""

from __future__ import annotations

from persona.training.trackers.base import PROJECT, Accelerated, Sink, Start, starting


class MLflow(Accelerated):
    """Logs to an MLflow run at MLFLOW_TRACKING_URI, or in MLflow's default place."""

    name = "mlflow"
    modules = ("mlflow",)
    package = "mlflow"

    @classmethod
    def open(cls, start: Start) -> Sink:
        """Starts an MLflow run at MLFLOW_TRACKING_URI, or in MLflow's default place.

        Raises:
            PersonaError: MLflow cannot start.
        """
        from accelerate.tracking import MLflowTracker

        # By default MLflow sends the user, the program's path and its commit. Tags override them.
        tags = {
            "mlflow.user": PROJECT,
            "mlflow.source.name": PROJECT,
            "mlflow.source.git.commit": "",
        }
        with starting("MLflow", "look at MLFLOW_TRACKING_URI, or choose --tracker none"):
            return cls(MLflowTracker(PROJECT, run_name=start.run_id, tags=tags), start)
