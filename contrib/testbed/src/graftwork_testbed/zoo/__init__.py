"""The zoo: small networks trained on the test bed, in the formats of diffusers and transformers, and the parts that trained them."""
