from zaya_jax.timing import medians as medians
