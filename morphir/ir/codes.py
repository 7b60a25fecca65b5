"""Every code that a tie, a verdict or a remark can carry: what it means, and what the user could do.

One table. A rule that emits a new code adds a row here; a test finds the codes in the program, and
docs/verdicts.md is held to this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

CodeKind = Literal["tie", "frozen", "prune-only", "refused", "missed", "applied"]


@dataclass(frozen=True)
class Code:
    """One code.

    Attributes:
        name: The code itself, as ``model-output``.
        kind: What carries it: a tie of two channels; a verdict that is frozen or prune-only; a remark.
        meaning: A sentence without its full stop; ``{node}`` stands for the operator responsible.
        suggestion: What the user could do; empty for ties, and where nothing was withheld.
    """

    name: str
    kind: CodeKind
    meaning: str
    suggestion: str = ""


_TIES = (
    Code("same-position", "tie", "they meet at the same position of {node}"),
    Code("same-channel", "tie", "they lie in one channel of what {node} reads"),
    Code("parameter", "tie", "{node} holds a value for each channel that passes it"),
    Code("consumer", "tie", "the kernel of {node} has a column for each channel that it reads"),
    Code(
        "equal-per-conv-group",
        "tie",
        "{node} is a grouped convolution and needs equally many channels in each group: "
        "those of the same place in their groups go together",
    ),
    Code(
        "equal-per-norm-group",
        "tie",
        "{node} normalises in groups and needs equally many channels in each: "
        "those of the same place in their groups go together",
    ),
    Code(
        "same-inner-index",
        "tie",
        "{node} lays the channels out along several dimensions: those of the same inner index go together",
    ),
    Code(
        "equal-counts",
        "tie",
        "the program compares their numbers at {node}, and takes the path for equal ones",
    ),
    Code(
        "equal-chunks",
        "tie",
        "{node} cuts equal chunks: channels of the same place in their chunks go together",
    ),
    Code(
        "same-count",
        "tie",
        "{node} is shaped by the number of some channels and lays out others: they stay equally many",
    ),
    Code("same-place", "tie", "channels that {node} lets compete for one place go together"),
    Code(
        "same-block", "tie", "{node} makes one of a block of channels, or takes one from it: it goes together"
    ),
    Code(
        "shared-number",
        "tie",
        "the module that {node} calls holds one number of channels for all its calls, which stays one",
    ),
)

_PRUNE_ONLY = (
    Code(
        "channel-norm",
        "prune-only",
        "{node} normalises over the channels, so that one more of them changes all others",
        "prune them; to split them too, normalise each channel on its own (batch or instance norm)",
    ),
    Code(
        "channel-reduction",
        "prune-only",
        "{node} reduces over the channels, so that one more of them changes the result",
        "prune them; to split them too, put a 1x1 convolution in the place of the reduction",
    ),
    Code(
        "channel-softmax",
        "prune-only",
        "{node} takes a softmax over the channels, so that one more of them changes all others",
        "prune them; to split them too, gate each channel on its own (sigmoid)",
    ),
    Code(
        "channel-scan",
        "prune-only",
        "{node} accumulates over the channels, so that one more of them changes all that come after",
        "prune them; to split them too, put a 1x1 convolution in the place of the scan",
    ),
)

_FROZEN = (
    Code(
        "model-output",
        "frozen",
        "a channel of a model output, on whose number the callers count",
        "nothing if callers need this shape; else trace the model with the layer that reads its output",
    ),
    Code(
        "model-input",
        "frozen",
        "a channel of a model input, or one combined with it position by position",
        "put a projection (a 1x1 convolution, a linear layer) between the input and what it is combined with",
    ),
    Code(
        "unknown-operator",
        "frozen",
        "the analysis has no rule for {node}",
        "write it with operators that have one, or add a rule: one small function in morphir/analysis/rules",
    ),
    Code(
        "attention",
        "frozen",
        "{node} contracts queries with keys, or lays values out over heads, which have no morphism yet",
        "nothing yet for the heads; the hidden layers between attentions grow",
    ),
    Code(
        "bilinear",
        "frozen",
        "{node} contracts the channels of two activations with each other",
        "put a projection (a 1x1 convolution, a linear layer) before the product: what it reads can grow",
    ),
    Code(
        "partly-contracted",
        "frozen",
        "{node} contracts one of several dimensions along which the channels lie",
        "flatten these dimensions into one before the product",
    ),
    Code(
        "computed-kernel",
        "frozen",
        "the kernel of {node} is computed, and no parameter itself",
        "make the kernel a parameter: fold a weight norm or parametrisation into it before tracing "
        "(torch.nn.utils.parametrize.remove_parametrizations)",
    ),
    Code(
        "tied-parameter",
        "frozen",
        "one parameter makes channels in one place and reads them in another",
        "give each use a parameter of its own",
    ),
    Code(
        "opaque-module",
        "frozen",
        "{node} is a module or a wrapped function that is kept whole: it cannot be traced, mixes channels "
        "several times inside, or does not treat all channels alike",
        "write it so that fx can trace into it: no control flow on tensor values, a layer for each product",
    ),
    Code(
        "no-channels",
        "frozen",
        "{node} has an entry for each position along a dimension that holds no channels",
        "nothing if its length is the data's (positions, time); else move the channels to this dimension",
    ),
    Code(
        "window-over-channels",
        "frozen",
        "the window of {node} slides over the channels as if they were positions",
        "move the channels to the dimension that the operator takes for them (permute, movedim)",
    ),
    Code(
        "size-1-broadcast",
        "frozen",
        "a single channel that {node} broadcasts over others",
        "nothing if it is meant for all of them, as a spatial gate is; else give it one channel for each",
    ),
    Code(
        "single-channel",
        "frozen",
        "{node} singles one channel out and drops its dimension",
        "keep the dimension: cut with a slice (x[:, 3:4]) or split in its place",
    ),
    Code(
        "meets-constant",
        "frozen",
        "{node} combines the channels with a value that has no channels there",
        "make the value a parameter or a buffer of the module, with an entry for each channel",
    ),
    Code(
        "channel-pad",
        "frozen",
        "{node} pads the channels in a way that cannot be rewritten: a module, a computed amount, a cut",
        "pad them with torch.nn.functional.pad and amounts written out; cut them with a slice",
    ),
    Code(
        "literal",
        "frozen",
        "{node} holds positions or a number of channels that MorphIR does not rewrite",
        "use view, reshape, split, chunk, slices or cat, whose literals are rewritten",
    ),
    Code(
        "computed-slice",
        "frozen",
        "the bounds of a slice at {node} are computed, and no fixed share of the number of channels",
        "slice with literal bounds, or with bounds such as x.size(1) // 2; or use split",
    ),
    Code(
        "computed-index",
        "frozen",
        "{node} picks channels by a mask, by several indices, or by an index that the program computes",
        "pick them by a list, or by a buffer of whole numbers that is read here alone",
    ),
    Code(
        "strided-slice",
        "frozen",
        "the last channels, too few to fill a step of the slices at {node}",
        "use a number of channels that the step divides",
    ),
    Code(
        "reversed",
        "frozen",
        "{node} combines the channels with themselves in reversed order: this one is in the middle",
        "use an even number of channels",
    ),
    Code(
        "merged-dimensions",
        "frozen",
        "{node} lays these channels along one dimension together with others",
        "put a projection (a 1x1 convolution, a linear layer) between them and the view",
    ),
    Code(
        "size-as-value",
        "frozen",
        "the number of channels is used as a value at {node}, so that one more of them changes the function",
        "compute the value in __init__, and keep it as a number of the module's",
    ),
    Code(
        "looked-up",
        "frozen",
        "an entry that {node} looks up by its number",
        "nothing: the model's inputs hold these numbers",
    ),
    Code(
        "in-place-write",
        "frozen",
        "{node} writes the channels into a tensor of other channels",
        "build the tensor with cat, stack or where in the place of writing into it",
    ),
    Code(
        "restrided",
        "frozen",
        "{node} lays the memory out anew by as_strided",
        "use view, reshape or permute in its place",
    ),
    Code(
        "picked-by-position",
        "frozen",
        "{node} picks channels together with positions, so that one more of them shifts all that come after",
        "pick the positions before the channels meet them, or gather along one dimension alone",
    ),
    Code(
        "regrouped",
        "frozen",
        "with one channel more or less of them, the operators after {node} tie other channels together",
        "nothing where an operator shuffles or halves channels again and again; "
        "else cut and lay them out by sizes that divide their number",
    ),
    Code(
        "trial-failed",
        "frozen",
        "the program did not follow at {node} when some of them were split, or pruned, on trial",
        "read sizes from tensors (x.size(1)), or write them as literals that equal a dimension; "
        "arithmetic on a number of channels does not follow it",
    ),
)

_REFUSED = (
    Code(
        "does-not-follow",
        "refused",
        "the program, run on the rewritten shapes, fails or finds other channels than predicted",
        "read sizes from tensors (x.size(1)), or write them as literals that equal a dimension; "
        "arithmetic on a number of channels does not follow it",
    ),
    Code(
        "nothing-left",
        "refused",
        "no channel group of the space would be left",
        "keep at least one channel group in every space",
    ),
    Code(
        "nothing-read",
        "refused",
        "{node} would yield no channel at all",
        "keep at least one of the channels that this operator cuts out or reads",
    ),
    Code(
        "too-few-left",
        "refused",
        "a single channel would be left at {node}, which takes it for something else: a convolution in "
        "groups of one channel is depthwise, a norm of one channel mixes none",
        "keep at least two of the channels that this operator reads",
    ),
    Code(
        "named-twice",
        "refused",
        "one channel group is named by two morphisms",
        "name each channel group at most once; all indices refer to the graph as it was before",
    ),
    Code(
        "no-learning-rule",
        "refused",
        "what a producer computes is not linear in its kernel, so that there is nothing to learn it by",
        "split at theta = 0 and train, or write the producer as a convolution or linear layer",
    ),
    Code(
        "several-kernels",
        "refused",
        "one operator makes the channels with several kernels",
        "split at theta = 0 and train, or call a layer for each kernel",
    ),
    Code(
        "scattered-samples",
        "refused",
        "what a consumer reads does not hold the samples one after the other along one dimension",
        "split at theta = 0 and train, or keep the batch a dimension of its own",
    ),
)

_MISSED = (
    Code(
        "disabled",
        "missed",
        "morphisms of this kind are switched off",
        "set the option splits or prunes to true",
    ),
    Code(
        "not-finite",
        "missed",
        "its estimated change of the loss is not a number",
        "lower the learning rate of theta (theta_lr), and look for infinities in the loss",
    ),
    Code(
        "does-not-pay",
        "missed",
        "it costs more than it gains",
        "lower lambda_parameters and lambda_macs, or learn for longer",
    ),
    Code("other-is-better", "missed", "another morphism of the same group gains more"),
    Code("min-width", "missed", "so many groups of its space have to stay", "lower min_width"),
    Code(
        "not-among-best",
        "missed",
        "it pays, but is not among the best of its space, fewer of which are taken where they are worth less",
        "raise best_fraction; the gains are not additive",
    ),
    Code(
        "not-worth-it-together",
        "missed",
        "it pays alone, but with the others at once it gains less than it costs",
        "lower lambda_parameters or lambda_macs, or train longer before it",
    ),
    Code(
        "width-multiple",
        "missed",
        "withdrawn for a width that is a multiple of width_multiple, or a width that could not become one",
        "set width_multiple to 1, or allow splits and prunes of all its groups",
    ),
    Code(
        "over-budget",
        "missed",
        "it pays, but the budget does not allow it",
        "raise max_parameters or max_macs",
    ),
    Code(
        "not-reinitialised",
        "missed",
        "a tensor keeps its values, since its module has no reset_parameters",
        "pass an initialise function, or give the module a reset_parameters method",
    ),
    Code(
        "batch-norm-not-affine",
        "missed",
        "a batch norm without affine map or running statistics cannot keep its train-mode function",
        "use batch norms with affine=True and track_running_stats=True",
    ),
    Code(
        "batch-norm-shared",
        "missed",
        "a batch norm that shares tensors with another module cannot keep its train-mode function",
        "give each batch norm tensors of its own",
    ),
)

_APPLIED = (
    Code("split", "applied", "the group was split in two"),
    Code("prune", "applied", "the group was removed"),
    Code("dead-code", "applied", "nothing reads the node, and it was removed"),
)

CODES: Mapping[str, Code] = {
    code.name: code for code in (*_TIES, *_PRUNE_ONLY, *_FROZEN, *_REFUSED, *_MISSED, *_APPLIED)
}
"""Code to its row."""


def suggestion_for(code: str) -> str:
    """Returns what the user could do about a code; empty where there is nothing to do."""
    return CODES[code].suggestion if code in CODES else ""
