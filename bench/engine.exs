# What do guests cost in Beamr, next to plain wasmtime without the BEAM?
#
#     mix run bench/engine.exs
#
# The baseline is a Rust program (native/beamr/examples/plain.rs) that cargo builds with the same
# wasmtime; BEAMR_PLAIN names one that was built elsewhere. It runs beside this one and is asked
# for a batch whenever Beamr has done one.

Code.require_file("measure.exs", __DIR__)
Code.require_file("large.exs", __DIR__)
Code.require_file("compute.exs", __DIR__)

defmodule Bench.Engine do
  import Bench.Measure

  @crate Path.expand("../native/beamr", __DIR__)

  # The same bytes for both. The instances are small ones, as instances of a page are.
  @small ~s|(module (memory (export "memory") 1) (func (export "id") (param i32) (result i32) (local.get 0)))|

  def run do
    plain = System.get_env("BEAMR_PLAIN") || build()

    if plain do
      with_plain(plain, Bench.Compute.guest(), &compute/1)
      with_plain(plain, @small, &instances/1)
      with_plain(plain, Bench.Large.module(), &compilation/1)
    else
      fact("plain wasmtime was not measured: cargo is not there, and BEAMR_PLAIN is not set")
    end
  end

  defp compute(plain) do
    wasm = Beamr.instantiate!(Bench.Compute.guest())
    header("Beamr and plain wasmtime: calls")
    id = call(wasm, "id", 1)
    compare("trivial call", id, "wasmtime, a fiber", ask(plain, "id 1"))
    compare("trivial call", id, "wasmtime, typed, none", ask(plain, "direct 0"))

    header("Beamr and plain wasmtime: guests")

    same = fn label, function, argument ->
      compare(
        label,
        call(wasm, function, argument),
        "wasmtime",
        ask(plain, "#{function} #{argument}")
      )
    end

    same.("fib(27)", "fib", 27)
    same.("fib(32)", "fib", unless_quick(32, 20))
    same.("sieve to 1,000,000", "sieve", 1_000_000)
    same.("sieve to 10,000", "sieve", 10_000)
    same.("1,000,000 random updates", "walk", 1_000_000)
    same.("sum of 1 MiB", "sum", 1_048_576)
    same.("copy of 1 MiB", "copy", 1_048_576)
  end

  defp instances(plain) do
    header("Beamr and plain wasmtime: instances")
    module = Beamr.compile!(@small)
    close = fn -> module |> Beamr.instantiate!() |> Beamr.close() end
    compare("instantiate and close", close, "wasmtime", ask(plain, "instantiate 0"))
  end

  defp compilation(plain) do
    header("Beamr and plain wasmtime: compilation")
    wasm = Bench.Large.module()
    compile = fn -> Beamr.compile!(wasm, cache: nil) end
    compare("compile #{byte_size(wasm)} bytes", compile, "wasmtime", ask(plain, "compile 0"))
  end

  defp call(wasm, function, argument) do
    fn -> {:ok, [_]} = Beamr.call(wasm, function, [argument], timeout: :infinity) end
  end

  defp ask(port, operation) do
    {:batch,
     fn size ->
       Port.command(port, "#{operation} #{size}\n")

       receive do
         {^port, {:data, {:eol, nanoseconds}}} -> String.to_integer(nanoseconds)
         {^port, {:exit_status, status}} -> raise "the plain program ended with status #{status}"
       end
     end}
  end

  defp with_plain(program, source, measure) do
    path = Path.join(System.tmp_dir!(), "beamr-bench-#{System.pid()}")
    File.write!(path, source)

    try do
      options = [:binary, :exit_status, {:line, 100}, {:args, [path]}]
      port = Port.open({:spawn_executable, program}, options)
      measure.(port)
      Port.close(port)
    after
      File.rm!(path)
    end
  end

  defp build do
    if System.find_executable("cargo") do
      args = ["build", "--release", "--locked", "--quiet", "--example", "plain"]
      {_, 0} = System.cmd("cargo", args, cd: @crate, into: IO.stream())
      target = System.get_env("CARGO_TARGET_DIR") || "target"
      Path.expand("#{target}/release/examples/plain", @crate)
    end
  end
end

Bench.Engine.run()
