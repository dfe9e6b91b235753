"""SFT: maximum likelihood of the chosen answer."""

from mint.losses.interface import AnswerStats, LossOutput, needs, nll, register


@register("sft")
@needs(rejected=False, prompt=True)
def sft_loss(chosen: AnswerStats, *, prompt: AnswerStats | None = None) -> LossOutput:
    """L = - mean over the batch's tokens of log pi(token).

    chosen: the answers. prompt: if given, the mean is over the tokens of prompt and answer.
    """
    loss = nll(chosen) if prompt is None else nll(chosen, prompt)
    return LossOutput(loss, {"nll_loss": loss.detach(), "logps/chosen": chosen.logp_mean.detach().mean()})
