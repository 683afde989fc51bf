"""The tables that stand where a page has `<!-- site: NAME -->`, by that name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from site_pages import commands, config_fields, metrics, reference, results

TABLES: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        "config": config_fields.config_page,
        "metrics": metrics.metrics_page,
        "limits": metrics.limits_page,
        "commands": commands.commands_page,
        "results": results.results_page,
        "packages": reference.packages_table,
    }
)
