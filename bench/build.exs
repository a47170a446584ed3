# What does it cost to build the library from nothing, next to wasmtime alone?
#
#     mix run bench/build.exs
#
# Takes some fifteen minutes of two processors. CPU time is what cargo and all that it starts use,
# all processors together. wasmtime alone is a library with what compiles modules and calls them on
# fibers, of the same version and with the same profile.

Code.require_file("measure.exs", __DIR__)

defmodule Bench.Build do
  import Bench.Measure

  @crate Path.expand("../native/beamr", __DIR__)
  @features ~w(async cranelift runtime std)

  @source """
  #[unsafe(no_mangle)]
  pub extern "C" fn run() -> i32 {
      let engine = wasmtime::Engine::default();
      let module = wasmtime::Module::new(&engine, b"\\0asm\\x01\\0\\0\\0").unwrap();
      let mut store = wasmtime::Store::new(&engine, ());
      let linker = wasmtime::Linker::new(&engine);
      let instance = linker.instantiate_async(&mut store, &module);
      let waker = std::task::Waker::noop();
      let polled = std::pin::pin!(instance).poll(&mut std::task::Context::from_waker(waker));
      i32::from(polled.is_ready())
  }
  """

  def run do
    folder = Path.join(System.tmp_dir!(), "beamr-bench-#{System.pid()}")

    try do
      plain = Path.join(folder, "plain")
      write_plain(plain)
      # So that no time goes by with downloads.
      {_output, 0} = System.cmd("cargo", ["fetch", "--locked"], cd: @crate, into: IO.stream())

      header("Built from nothing")
      ours = build(@crate, Path.join(folder, "ours-target"))
      alone = build(plain, Path.join(folder, "plain-target"))
      row("CPU time", ours.cpu, "wasmtime alone", alone.cpu)
      processors = "#{System.schedulers_online()} processors"
      row("elapsed, #{processors}", ours.elapsed, "wasmtime alone", alone.elapsed)
      fact("library: #{megabytes(ours.size)}; wasmtime alone: #{megabytes(alone.size)}")
    after
      File.rm_rf!(folder)
    end
  end

  defp write_plain(folder) do
    File.mkdir_p!(Path.join(folder, "src"))
    File.write!(Path.join(folder, "src/lib.rs"), @source)
    # The same versions of everything; what is not needed cargo takes out.
    File.cp!(Path.join(@crate, "Cargo.lock"), Path.join(folder, "Cargo.lock"))
    manifest = File.read!(Path.join(@crate, "Cargo.toml"))
    [profile] = Regex.run(~r/^\[profile\.release\]\n(?:.+\n)+/m, manifest)
    [_, version] = Regex.run(~r/name = "wasmtime"\nversion = "(.*)"/, lock(folder))

    File.write!(Path.join(folder, "Cargo.toml"), """
    [package]
    name = "plain"
    edition = "2024"

    [lib]
    crate-type = ["cdylib"]

    [dependencies]
    wasmtime = { version = "=#{version}", default-features = false, features = #{inspect(@features)} }

    #{profile}
    [workspace]
    """)
  end

  defp lock(folder), do: File.read!(Path.join(folder, "Cargo.lock"))

  defp build(crate, target) do
    command = "TIMEFORMAT=$'\\n%R %U %S'; time cargo build --release --offline"
    # Without what a user may have set that would make the times, or this, go wrong.
    env = [{"CARGO_TARGET_DIR", target}, {"RUSTC_WRAPPER", ""}, {"LC_ALL", "C"}]
    options = [cd: crate, env: env, stderr_to_stdout: true]
    {output, 0} = System.cmd("bash", ["-c", command], options)
    times = output |> String.split("\n", trim: true) |> List.last() |> String.split()
    [elapsed, user, system] = for seconds <- times, do: String.to_float(seconds) * 1.0e9
    [library] = Path.wildcard(Path.join(target, "**/release/lib*.{so,dylib}"))
    %{cpu: user + system, elapsed: elapsed, size: File.stat!(library).size}
  end

  defp megabytes(bytes), do: "#{Float.round(bytes / 1.0e6, 1)} MB"
end

Bench.Build.run()
