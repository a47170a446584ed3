defmodule Beamr.MixProject do
  use Mix.Project

  @version "0.1.0"

  def project do
    [
      app: :beamr,
      version: @version,
      elixir: "~> 1.14",
      description: "WebAssembly guests inside the BEAM: call them, and reach their memory",
      compilers: [:beamr_native | Mix.compilers()],
      elixirc_paths:
        if(Mix.env() == :test, do: ["lib", "test/support", "examples"], else: ["lib"]),
      # bin/hostile runs these.
      test_ignore_filters: [&String.starts_with?(&1, "test/hostile/")],
      start_permanent: Mix.env() == :prod,
      deps: []
    ]
  end

  def application do
    [
      mod: {Beamr.Application, []},
      extra_applications: [
        :logger,
        :crypto,
        inets: :optional,
        ssl: :optional,
        public_key: :optional
      ]
    ]
  end
end

defmodule Mix.Tasks.Compile.BeamrNative do
  @moduledoc false
  # Builds the Rust crate with cargo and puts the library where `Beamr.Native` loads it from.
  # With BEAMR_NATIVE_PATH set, the library is one that was built elsewhere, and nothing is done.

  use Mix.Task.Compiler

  @crate "native/beamr"

  @impl true
  def run(_args) do
    cond do
      System.get_env("BEAMR_NATIVE_PATH") -> {:noop, []}
      Mix.Utils.stale?(sources(), [library()]) -> build()
      true -> {:noop, []}
    end
  end

  @impl true
  def clean do
    File.rm(library())
    :ok
  end

  defp library, do: Path.join(File.cwd!(), "priv/native/beamr.so")

  defp sources do
    Enum.flat_map(
      ["src/**/*.rs", "build.rs", "Cargo.{toml,lock}"],
      &Path.wildcard("#{@crate}/#{&1}")
    )
  end

  defp build do
    Mix.shell().info("Building #{@crate} with cargo (the first time takes some minutes)")

    unless System.find_executable("cargo") do
      Mix.raise("""
      cargo was not found. Beamr builds its native library with Rust: install it from \
      https://rustup.rs, or set BEAMR_NATIVE_PATH to a library built elsewhere.\
      """)
    end

    case System.cmd("cargo", ["build", "--release", "--locked"], cd: @crate, into: IO.stream()) do
      {_output, 0} ->
        install(built())
        {:ok, []}

      {_output, status} ->
        Mix.raise("cargo build failed with status #{status}")
    end
  end

  defp built do
    target = System.get_env("CARGO_TARGET_DIR") || "target"
    [path] = Path.wildcard(Path.expand("#{target}/release/libbeamr.{so,dylib}", @crate))
    path
  end

  # A library that a running VM has mapped must not be overwritten: the new one takes its name.
  defp install(built) do
    File.mkdir_p!(Path.dirname(library()))
    temporary = library() <> ".new"
    File.cp!(built, temporary)
    File.touch!(temporary)
    File.rename!(temporary, library())
    Mix.Project.build_structure()
  end
end
