"""torch.fx: the modules are leaves of a symbolic trace, as those of torch.nn are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn


def is_traced(state: Any) -> bool:
    """Whether an initial state is a proxy, or a tuple of proxies."""
    return isinstance(state, fx.Proxy) or isinstance(state[0], fx.Proxy)


def leaf_call(module: nn.Module, forward: Callable[..., Any], *arguments: Any) -> Any:
    """The call of `module` as one call_module node.

    `fx.Tracer.is_leaf_module` takes only modules under torch.nn for leaves, so that the default
    tracer, and those derived from it, call forward with proxies.

    Args:
        module: a submodule of what is traced.
        forward: the method that was called.
        arguments: of the call, a proxy among them.

    Raises:
        TraceError: `module` is the root; or it has hooks or a forward around this one, whose work
            is traced already and would be done again by the node.
    """
    proxies: list[fx.Proxy] = []
    fx.node.map_aggregate(
        arguments, lambda x: proxies.append(x) if isinstance(x, fx.Proxy) else None
    )
    tracer: Any = proxies[0].tracer
    kind, name = type(module), tracer.path_of_module(module)
    if not name:
        raise fx.proxy.TraceError(
            f"the root of the trace is a {kind.__name__}, must be a module that contains one"
        )
    if module._forward_hooks or module._forward_pre_hooks or kind.forward is not forward:
        raise fx.proxy.TraceError(
            f"{name} has hooks or a forward of its own, must be a leaf before they run: use an "
            f"fx.Tracer whose is_leaf_module is True for {kind.__name__}"
        )
    count, defaults = len(arguments), forward.__defaults__ or ()
    while defaults and arguments[count - 1] is defaults[len(defaults) - len(arguments) + count - 1]:
        count -= 1
    return tracer.create_proxy("call_module", name, arguments[:count], {})
