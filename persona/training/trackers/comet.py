"""The Comet tracker."""

from __future__ import annotations

from persona.training.trackers.base import PROJECT, Accelerated, Sink, Start, starting


class Comet(Accelerated):
    """Logs to a Comet experiment. Without an API key it is offline, in the run's folder."""

    name = "comet_ml"
    modules = ("comet_ml",)
    package = "comet-ml"

    @classmethod
    def open(cls, start: Start) -> Sink:
        """Starts a Comet experiment. Without an API key it is offline, in the run's folder.

        Raises:
            PersonaError: Comet cannot start.
        """
        import comet_ml
        from accelerate.tracking import CometMLTracker

        quiet = (
            *("log_code", "log_graph", "parse_args", "log_git_metadata", "log_git_patch"),
            *("log_env_details", "log_env_gpu", "log_env_host", "log_env_cpu", "log_env_network"),
            *("log_env_disk", "auto_param_logging", "auto_metric_logging", "auto_log_co2"),
        )
        settings = comet_ml.ExperimentConfig(
            name=start.run_id,
            display_summary_level=0,
            auto_output_logging=False,
            offline_directory=str(start.folder / "comet_ml"),
            **dict.fromkeys(quiet, False),
        )
        online = bool(comet_ml.get_config("comet.api_key"))
        with starting("Comet"):
            return cls(CometMLTracker(PROJECT, experiment_config=settings, online=online), start)
