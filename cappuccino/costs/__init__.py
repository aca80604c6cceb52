"""The cost model: what a micro-batch costs in time and memory, fitted to a profiled cost table."""

from cappuccino.costs.adapter_costs import AdapterCosts, micro_batch_shape
from cappuccino.costs.curves import SmoothMaximum
from cappuccino.costs.fit import fit_costs, fit_instance_costs
from cappuccino.costs.memory import MemoryModel
from cappuccino.costs.model import CostModel
from cappuccino.costs.stages import PipelineCosts
from cappuccino.costs.table import CostTable, read_cost_table

__all__ = [
    "AdapterCosts",
    "CostModel",
    "CostTable",
    "MemoryModel",
    "PipelineCosts",
    "SmoothMaximum",
    "fit_costs",
    "fit_instance_costs",
    "micro_batch_shape",
    "read_cost_table",
]
