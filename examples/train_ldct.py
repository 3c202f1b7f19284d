"""Trains a low-dose CT restoration model on a prepared dataset and saves it as a `CTDiffusionPipeline`.

    diffusers-ct prepare data/phantoms --phantoms 12 --dose 0.25 --dose 0.1
    accelerate launch examples/train_ldct.py --dataset data/phantoms --output_dir outputs/model \
        --max_train_steps 1500 --train_batch_size 8 --learning_rate 8e-4 --mixed_precision bf16

The model learns the residual between full and low dose by v-prediction (see the README's method index). Flags carry
diffusers' names; `--help` lists them all. The last line of output names the folder that
`CTDiffusionPipeline.from_pretrained` loads.
"""
