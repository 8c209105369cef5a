"""Figures: pure functions from tensors and plain records to Matplotlib figures; no pyplot, no display, no global state."""

from inference.plots.activity import plot_active_curve
from inference.plots.calibration import plot_calibration
from inference.plots.corner import plot_corner
from inference.plots.decodability import plot_decodability
from inference.plots.dictionary import plot_dictionary
from inference.plots.end_stopping import plot_end_stopping
from inference.plots.factors import plot_factor_map, plot_factor_scores, plot_level_contributions
from inference.plots.filters import plot_autocorrelation, plot_filters
from inference.plots.flow import draw_key, flow_colors, plot_flow
from inference.plots.frontier import plot_frontier
from inference.plots.gap import plot_gap
from inference.plots.levels import plot_group_kl
from inference.plots.prior_samples import plot_prior_samples
from inference.plots.reconstructions import plot_reconstructions
from inference.plots.rofl import plot_frames
from inference.plots.settling import plot_settling
from inference.plots.style import save
from inference.plots.training import gaussian_constant, plot_training
from inference.plots.trajectory import plot_steps, plot_trajectory
from inference.plots.traversal import plot_traversals

__all__ = ["draw_key", "flow_colors", "gaussian_constant", "plot_active_curve", "plot_autocorrelation",
           "plot_calibration", "plot_corner", "plot_decodability", "plot_dictionary", "plot_end_stopping",
           "plot_factor_map", "plot_factor_scores", "plot_filters", "plot_flow", "plot_frames", "plot_frontier",
           "plot_gap", "plot_group_kl", "plot_level_contributions", "plot_prior_samples", "plot_reconstructions",
           "plot_settling", "plot_steps", "plot_training", "plot_trajectory", "plot_traversals", "save"]
