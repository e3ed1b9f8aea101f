# %% [markdown]
# # 1. Introduction: a model, its size, its training, its text
#
# Every architecture here is a Linen module whose fields are its hyperparameters, a pure function of variables and
# inputs. This notebook shows each step once: create, inspect, train, sample. It takes <!-- run time -->.
#
# <!-- about: create, inspect, train and sample a model | figure: none yet -->

# %%
import jax
import jax.numpy as jnp

import arch_jax

for model in arch_jax.list_models():
    print(f"{model.name:24} {model.parameters:>16,} parameters   {model.paper} ({model.year})")

arch_jax.models()["llama3-70b"].count()  # counted now

# %% [markdown]
# Counting needs shapes only (`jax.eval_shape`): Llama 3 70B is counted without allocating it. A small model,
# initialised:

# %%
model = arch_jax.create("gpt", depth=2, width=64, **{"mixer.heads": 4})
tokens = jnp.arange(12)[None]
variables = model.init(jax.random.key(0), tokens)
logits = model.apply(variables, tokens)
logits.shape, sum(leaf.size for leaf in jax.tree.leaves(variables))

# %% [markdown]
# ## Causality
#
# Token $t$ may depend on tokens $0 \dots t$ only. The Jacobian of the logits with respect to the embedded inputs says
# so exactly; here, the same with the last token changed: nothing before it moves.

# %%
changed = tokens.at[0, -1].set(200)
difference = jnp.abs(model.apply(variables, changed) - logits).max(axis=-1)[0]
assert (difference[:-1] == 0).all()
assert difference[-1] > 0
difference

# %% [markdown]
# ## An experiment
#
# A run is described by plain fields. Every field can be overridden, here and on the command line
# (`arch-jax train gpt --set model.depth=2`).

# %%
import tempfile

experiment = arch_jax.Experiment(
    name="introduction",
    model=model,
    objective=arch_jax.objective("next_token"),
    data=arch_jax.Text(source="pydocs", length=64, batch=16),
    optimizer=arch_jax.Optimizer("adamw", learning_rate=3e-3, warmup=10, weight_decay=0.1),
    steps=120,
    evaluate_every=60,
    checkpoint_every=60,
).overridden({"objective.show_length": 120})
folder = tempfile.mkdtemp()
outcome = arch_jax.train(experiment, folder)
outcome.validation

# %% [markdown]
# After so few steps the model knows only the frequencies of short strings, but it knows them: a byte costs less than
# the $\ln 256 = 5.55$ nats of a uniform guess.

# %%
assert outcome.finished
assert outcome.validation["loss"] < 3.0
print(next(path for path in outcome.shown if path.suffix == ".txt").read_text())

# %% [markdown]
# ## Sampling
#
# `generate` feeds the prompt once and then one token a step through the state of each layer; the tokens equal those of
# recomputing everything each time.

# %%
prompt = jnp.frombuffer(b"The ", dtype=jnp.uint8).astype(jnp.int32)[None]
trained = outcome.state.evaluated
new = arch_jax.generate(model, trained, prompt, 60, jax.random.key(1), temperature=0.7, top_k=20)
print("The " + bytes(new[0].tolist()).decode(errors="replace"))
