"""Prompts and golden data of models with routed experts, free of near ties.

A random router's k-th and (k+1)-th scores often lie closer together than two programs' rounding may be relied on to
keep apart, and one expert more or less changes everything after it. So ids are not only drawn, they are chosen: every
token of every prompt, every greedy token and every scored token must have each layer's choice of groups and of experts
lead by LEAST_MARGIN in the scores that it is made by.
"""
import json
from pathlib import Path

import torch
import transformers
from make_llama_family import GREEDY_TOKENS, LEAST_EFFECT, LEAST_LEAD, PROMPT_LENGTHS, SCORED_TOKENS
from make_llama_family import load as load_any

LEAST_MARGIN = 1e-3
CANDIDATES = 128
ROUNDS = 12


def load(folder, edit=lambda config: None):
    """With the experts' products one by one, which takes any sizes, rather than grouped."""
    return load_any(folder, edit, experts_implementation="eager")


def choice_scores(config, logits, bias):
    """What experts are chosen by, what groups are chosen by (None without groups), and what a dropped group's get."""
    if config.model_type == "qwen3_moe":
        return logits.softmax(-1), None, None
    grouped = lambda scores: scores.view(len(scores), config.n_group, -1)
    if config.model_type == "deepseek_v3":
        scores = logits.sigmoid() + bias
        return scores, grouped(scores).topk(2).values.sum(-1), float("-inf")
    scores = logits.softmax(-1)
    return scores, grouped(scores).amax(-1) if config.topk_method == "group_limited_greedy" else None, 0.0


def margins(config, logits, bias):
    """By how much a layer's choices lead; logits [N, experts] -> [N]."""
    scores, groups, dropped = choice_scores(config, logits, bias)
    margin = torch.full((len(scores),), float("inf"))
    if groups is not None and config.topk_group < config.n_group:
        top = groups.topk(config.topk_group + 1)
        margin = top.values[:, -2] - top.values[:, -1]
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter(1, top.indices[:, :-1], True)
        scores = scores.masked_fill(~kept.repeat_interleave(scores.shape[1] // groups.shape[1], 1), dropped)
    top = scores.topk(config.num_experts_per_tok + 1).values
    return torch.minimum(margin, top[:, -2] - top[:, -1])


class Routed:
    """A transformers model that also tells the smallest margin of its routers at each position."""

    def __init__(self, model):
        self.model, self.config, self.routers = model, model.config, []
        for module in model.modules():
            if "TopkRouter" in type(module).__name__ or "TopKRouter" in type(module).__name__:
                module.register_forward_hook(self.note)
        self.seen = []

    def note(self, module, _, outputs):
        bias = getattr(module, "e_score_correction_bias", None)
        self.seen.append(margins(self.config, outputs[0].float(), bias))

    @torch.no_grad()
    def __call__(self, batch):
        """Logits [B, T, vocabulary] and margins [B, T]."""
        ids = torch.tensor(batch)
        self.seen.clear()
        logits = self.model(ids, use_cache=False).logits.float()
        assert self.seen, "the model has no router"
        return logits, torch.stack(self.seen).amin(0).view(ids.shape)


def clear_ids(routed, count, generator):
    """Random ids, none of which is a near tie for a router; None if there is no way on."""
    ids = []
    while len(ids) < count:
        candidates = torch.randint(2, routed.config.vocab_size, (CANDIDATES // 16,), generator=generator).tolist()
        margin = routed([ids + [candidate] for candidate in candidates])[1][:, -1]
        good = (margin > LEAST_MARGIN).nonzero().flatten().tolist()
        if not good:
            return None
        ids.append(candidates[good[0]])
    return ids


def clear_case(routed, length, generator):
    """A prompt whose greedy continuation is clear too; None after ROUNDS tries."""
    for _ in range(ROUNDS):
        beginning = clear_ids(routed, length - 1, generator)
        if beginning is None:
            continue
        ends = torch.randperm(routed.config.vocab_size - 2, generator=generator)[:CANDIDATES] + 2
        alive = [beginning + [end] for end in ends.tolist()]
        for _ in range(GREEDY_TOKENS):
            logits, margin = routed(alive)
            top = logits[:, -1].topk(2)
            clear = (margin[:, -1] > LEAST_MARGIN) & (top.values[:, 0] - top.values[:, 1] > LEAST_LEAD)
            alive = [alive[i] + [top.indices[i, 0].item()] for i in clear.nonzero().flatten().tolist()]
            if not alive:
                break
        else:
            return alive[0]
    return None


def clear_golden(model, seed, note, made_with=None):
    """The golden data of a model with routed experts, or None where the seed will not do."""
    routed, generator = Routed(model), torch.Generator().manual_seed(seed + 1000)
    cases, least = [], float("inf")
    for length in PROMPT_LENGTHS:
        ids = clear_case(routed, length, generator)
        if ids is None:
            return None
        # Once more in one go, as a check on the search; the last greedy token is not an input.
        logits, margin = routed([ids[:-1]])
        greedy, top = ids[length:], logits[0, length - 1:].topk(2)
        assert top.indices[:, 0].tolist() == greedy
        if (top.values[:, 0] - top.values[:, 1]).min() < LEAST_LEAD:
            return None
        least = min(least, margin.min().item())
        cases.append({"prompt_ids": ids[:length], "greedy_ids": greedy,
                      "last_logits": [float(f"{x:.6g}") for x in logits[0, length - 1].tolist()]})
    ids = clear_ids(routed, SCORED_TOKENS, generator)
    if ids is None:
        return None
    logits, margin = routed([ids])
    least = min(least, margin.min().item())
    if least < LEAST_MARGIN:
        return None
    nll = -logits[0, :-1].double().log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).mean().item()
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager"
    return {"made_with": made_with or versions, "note": note, "least_router_margin": float(f"{least:.3g}"),
            "cases": cases, "perplexity": {"ids": ids, "mean_nll": nll}}


def check_effects(folder, golden, effects):
    """Each setting in turn replaced by what a careless program would assume must change the logits."""
    ids = golden["perplexity"]["ids"]
    expected = Routed(load(folder))([ids])[0]
    for key, value in effects:
        edited = Routed(load(folder, lambda config: setattr(config, key, value)))([ids])[0]
        effect = (edited - expected).abs().max().item()
        assert effect > LEAST_EFFECT, f"{folder.name}: {key} = {value} changes logits by {effect} alone"


def rewrite_config(folder, edit):
    file = Path(folder) / "config.json"
    written = json.loads(file.read_text())
    edit(written)
    file.write_text(json.dumps(written, indent=2) + "\n")
