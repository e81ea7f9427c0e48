"""MLflow."""

from __future__ import annotations

from persona.training.trackers.base import PROJECT, Accelerated, Sink, Start, starting


class MLflow(Accelerated):
    """A run at MLFLOW_TRACKING_URI, or where MLflow keeps runs by itself."""

    name = "mlflow"
    modules = ("mlflow",)
    package = "mlflow"

    @classmethod
    def open(cls, start: Start) -> Sink:
        """Starts an MLflow run, at MLFLOW_TRACKING_URI or where MLflow keeps runs by itself."""
        from accelerate.tracking import MLflowTracker

        # It would send user, path of the program and its commit by itself; tags that are given win.
        tags = {
            "mlflow.user": PROJECT,
            "mlflow.source.name": PROJECT,
            "mlflow.source.git.commit": "",
        }
        with starting("MLflow", "look at MLFLOW_TRACKING_URI, or choose --tracker none"):
            return cls(MLflowTracker(PROJECT, run_name=start.run_id, tags=tags), start)
