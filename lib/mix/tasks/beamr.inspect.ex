defmodule Mix.Tasks.Beamr.Inspect do
  @shortdoc "Shows what a WebAssembly module imports and exports"

  @moduledoc """
  Shows what a WebAssembly module imports and exports, with types, the limits of its memories,
  and its custom sections.

      mix beamr.inspect FILE

  The file holds WebAssembly bytes or text. Nothing of it is run.
  """

  use Mix.Task

  @requirements ["app.start"]

  @impl true
  def run([path]) do
    case Beamr.compile_file(path) do
      {:ok, module} -> report(path, module)
      {:error, error} -> Mix.raise(Exception.message(error))
    end
  end

  def run(_args), do: Mix.raise("usage: mix beamr.inspect FILE")

  defp report(path, module) do
    name = with nil <- Beamr.Module.name(module), do: "a module without a name"
    Mix.shell().info("#{path}: #{escape(name)}")

    table(
      "imports",
      for(
        {from, name, type} <- Beamr.Module.imports(module),
        do: ["#{from} #{name}", Beamr.Module.format_type(type)]
      )
    )

    table(
      "exports",
      for(
        {name, type} <- Beamr.Module.exports(module),
        do: [name, Beamr.Module.format_type(type)]
      )
    )

    table(
      "custom sections",
      for({name, size} <- Beamr.Module.custom_sections(module), do: [name, "#{size} bytes"])
    )
  end

  defp table(title, []), do: Mix.shell().info("\n#{title}: none")

  defp table(title, rows) do
    rows = for [name, text] <- rows, do: [escape(name), text]
    width = rows |> Enum.map(fn [name, _text] -> String.length(name) end) |> Enum.max()
    Mix.shell().info("\n#{title}:")

    for [name, text] <- rows,
        do: Mix.shell().info("  #{String.pad_trailing(name, width)}  #{text}")
  end

  # Names are whatever the module says, terminal control sequences included.
  defp escape(name), do: name |> inspect() |> String.slice(1..-2//1)
end
