defmodule Mix.Tasks.Beamr.Bench do
  @shortdoc "Measures Beamr, and writes a table and a picture"

  @moduledoc """
  Measures Beamr by all that is in `bench/`, and writes a table and a picture of it.

      MIX_ENV=prod mix beamr.bench
      MIX_ENV=prod mix beamr.bench --only engine,basics

  Each operation is measured against a baseline in the same run: a NIF that does nothing,
  `:binary.copy/1`, `GenServer.call/2`, a function of Elixir, and plain wasmtime without the BEAM,
  in a small program that cargo builds for it. It takes some minutes, and wants a machine that does
  nothing else.

  ## Options

    * `--only` - names of files in `bench/`, with commas between
    * `--out` - the folder for `figures.md` and `figures.svg`; `tmp/bench` unless given
    * `--quick` - only sees to it that everything runs; the figures say nothing then

  `bench/` is part of Beamr's repository and not of its package: where Beamr is a dependency, there
  is nothing to run.
  """

  use Mix.Task

  @requirements ["app.start"]
  @runner "bench/all.exs"

  @impl true
  def run(args) do
    unless File.exists?(@runner) do
      Mix.raise("There is no #{@runner} here: mix beamr.bench runs in Beamr's own repository.")
    end

    Code.require_file(@runner)
    # Not known before it is loaded.
    apply(Bench.All, :main, [args])
  end
end
