# What does it save to keep compiled modules?
#
#     mix run bench/compile.exs

Code.require_file("measure.exs", __DIR__)
Code.require_file("large.exs", __DIR__)

defmodule Bench.Compile do
  import Bench.Measure

  def run do
    wasm = Bench.Large.module()
    header("A module of #{byte_size(wasm)} bytes")

    folder = Path.join(System.tmp_dir!(), "beamr-bench-#{System.pid()}")

    try do
      measure(wasm, folder)
    after
      File.rm_rf!(folder)
    end
  end

  defp measure(wasm, folder) do
    cached = [cache: folder]
    compile = fn -> Beamr.compile!(wasm, cache: nil) end
    module = Beamr.compile!(wasm, cached)
    binary = Beamr.Module.serialize(module)
    deserialize = fn -> Beamr.Module.deserialize_trusted!(binary) end
    fact("serialized: #{byte_size(binary)} bytes")

    for {label, subject} <- [
          {"compile, and cache", {:batch, &first(&1, wasm, folder)}},
          {"load from the cache", fn -> Beamr.compile!(wasm, cached) end},
          {"serialize", fn -> Beamr.Module.serialize(module) end},
          {"deserialize", deserialize}
        ] do
      # Put there again, where it has just been removed.
      Beamr.compile!(wasm, cached)
      compare(label, subject, "compile", compile)
    end
  end

  # Removing what is in the cache is no part of the time.
  defp first(count, wasm, folder) do
    for _ <- 1..count, reduce: 0 do
      spent ->
        File.rm_rf!(folder)
        start = System.monotonic_time(:nanosecond)
        Beamr.compile!(wasm, cache: folder)
        spent + System.monotonic_time(:nanosecond) - start
    end
  end
end

Bench.Compile.run()
