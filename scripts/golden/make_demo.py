#!/usr/bin/env python3
"""Makes tests/golden/demo-model/golden.json: what transformers computes from the demo model, in float32 with eager attention.

usage: make_demo.py tests/golden/demo-model assets/demo-model        (pip install torch transformers)

Per question: the prompt's ids, the logits after it, and the greedy answer. Then how many of 100 additions are right, the mean
negative log-likelihood (nats) of held-out dialogues of scripts/demo_model, and the smallest lead of a greedy choice and of a
router's choice of experts.
"""
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from make_llama_family import write_golden

sys.path.append(str(Path(__file__).resolve().parents[1] / "demo_model"))
import make_corpus

QUESTIONS = [
    "Which month comes before July?", "What is the capital of Germany?", "What is 29 + 31?", "What is 97 + 11?",
    "英国的首都是哪里？", "Tell me a story about Tom and a shell.", "Which day comes after Friday?", "What is 59 + 84?",
    "What is 72 + 43?", "Sort these numbers: 47 49 87 27", "What is 60 + 40?", "德国的首都是哪里？", "54加26等于多少？",
    "Count from 2 to 9.", "What is 95 - 56?", "What is the opposite of hot?", "Which is larger, 45 or 83?",
    "What is the capital of Japan?", "Which month comes before January?", "What number comes after 41?", "What is 27 + 91?",
    "What color is the sky?", "讲一个关于小猫的故事。", "Who are you?"]
MOST_TOKENS = 100
SHORT, SCORED = 192, 1000  # tokens


class Model:
    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                          experts_implementation="eager").eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def logits(self, ids):
        return self.model(torch.tensor([ids])).logits[0]

    def prompt(self, messages, answer=True):
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def greedy(self, prompt):
        """The logits after the prompt, the tokens up to the end, which is among them, and the smallest lead of one."""
        found = self.model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False,
                                    max_new_tokens=MOST_TOKENS, output_logits=True, return_dict_in_generate=True)
        top = torch.cat(found.logits).topk(2).values
        return found.logits[0][0], found.sequences[0, len(prompt):].tolist(), (top[:, 0] - top[:, 1]).min().item()

    def text(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def router_margins(model, found):
    """From now on `found` has the lead of every choice of experts."""
    def look(module, _, output):
        scores = output[0].sigmoid() + module.e_score_correction_bias
        top = scores.topk(model.config.num_experts_per_tok + 1).values
        found.append((top[:, -2] - top[:, -1]).min().item())

    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.register_forward_hook(look)


def additions_right(model):
    right = 0
    for i in range(100):  # as tests/system/conftest.py asks them
        a, b = (i * 37 + 11) % 90 + 5, (i * 53 + 7) % 90 + 5
        prompt = model.prompt([{"role": "user", "content": f"What is {a} + {b}?"}])
        right += model.text(model.greedy(prompt)[1]) == f"{a} + {b} = {a + b}."
    return right


def mean_nll(model, ids):
    log_probabilities = model.logits(ids).log_softmax(-1)
    return -log_probabilities[:-1].gather(1, torch.tensor(ids[1:])[:, None]).mean().item()


def main():
    out, folder = map(Path, sys.argv[1:3])
    torch.set_num_threads(1)
    model, margins, cases, least_lead = Model(folder), [], [], float("inf")
    router_margins(model.model, margins)
    for question in QUESTIONS:
        prompt = model.prompt([{"role": "user", "content": question}])
        last, tokens, lead = model.greedy(prompt)
        least_lead = min(least_lead, lead)
        print(f"{question}  {model.text(tokens)!r}  lead {lead:.3f}")
        cases.append({"question": question, "prompt_ids": prompt, "last_logits": [round(x, 4) for x in last.tolist()],
                      "greedy_ids": tokens, "greedy_text": model.text(tokens)})
    ids = []
    for line in make_corpus.lines_of("dialogue", "test", 100, seed=1):
        ids += model.prompt(json.loads(line)["messages"], answer=False)
    ids = ids[:SCORED]
    scores = {"ids": ids, "mean_nll": mean_nll(model, ids), f"first_{SHORT}_mean_nll": mean_nll(model, ids[:SHORT])}
    out.mkdir(exist_ok=True)
    write_golden(out, {"made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager",
                       "additions_right": additions_right(model), "least_lead": least_lead,
                       "least_router_margin": min(margins), "perplexity": scores, "cases": cases})


main()
