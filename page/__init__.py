"""Methods of `actlake.Lake` by subject: what it holds, what it gets, how it is checked and moved."""
