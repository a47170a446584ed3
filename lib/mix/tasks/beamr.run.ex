defmodule Mix.Tasks.Beamr.Run do
  @shortdoc "Runs a function of a WebAssembly module"

  @moduledoc """
  Runs a function of a WebAssembly module and prints its results, one a line.

      mix beamr.run [OPTIONS] FILE [ARGS]

  The file holds WebAssembly bytes or text. Arguments are numbers, or `nan`, `infinity` and
  `neg_infinity`; those that begin with `-` are taken as they are once the file is named.

  Options, before the file:

    * `--invoke NAME` - the exported function; `_start` unless given, or the only function that
      is exported
    * `--timeout MILLISECONDS` - how long the start function may take, and then the call;
      endless unless given
    * `--max-memory BYTES`, `--max-table-elements N`, `--fuel N` - limits of the instance

  Exit codes: 0 when the function has returned; 1 when it trapped; 2 for wrong usage, arguments
  that do not fit, and functions that do not exist; 3 when the file cannot be read, compiled or
  linked, or asks for more than its limits; 124 when the time was up.
  """

  use Mix.Task

  @requirements ["app.start"]

  @switches [
    invoke: :string,
    timeout: :integer,
    max_memory: :integer,
    max_table_elements: :integer,
    fuel: :integer
  ]

  @impl true
  def run(argv) do
    case OptionParser.parse_head(argv, strict: @switches) do
      {opts, [path | args], []} -> run(path, args, opts)
      {_opts, [], []} -> stop(2, "usage: mix beamr.run [OPTIONS] FILE [ARGS]")
      {_opts, _args, [{option, _value} | _]} -> stop(2, "wrong option, or wrong value: #{option}")
    end
  end

  defp run(path, args, opts) do
    {invoke, opts} = Keyword.pop(opts, :invoke)
    opts = Keyword.put_new(opts, :timeout, :infinity)
    args = Enum.map(args, &value/1)

    with {:ok, module} <- Beamr.compile_file(path, fuel: opts[:fuel] != nil),
         {:ok, function} <- function(module, invoke),
         {:ok, wasm} <- Beamr.instantiate(module, opts),
         {:ok, results} <- Beamr.call(wasm, function, args, timeout: opts[:timeout]) do
      Enum.each(results, &Mix.shell().info(format(&1)))
    else
      {:error, error} -> stop(code(error), Exception.message(error))
    end
  rescue
    error in ArgumentError -> stop(2, Exception.message(error))
  end

  defp function(_module, name) when is_binary(name), do: {:ok, name}

  defp function(module, nil) do
    case for({name, {:function, _type}} <- Beamr.Module.exports(module), do: name) do
      [only] ->
        {:ok, only}

      names ->
        if "_start" in names,
          do: {:ok, "_start"},
          else: stop(2, "which function? --invoke one of: #{Enum.join(names, ", ")}")
    end
  end

  defp value(text) do
    with :error <- parse(Integer.parse(text)),
         :error <- parse(Float.parse(text)) do
      case text do
        "nan" -> :nan
        "infinity" -> :infinity
        "neg_infinity" -> :neg_infinity
        _ -> stop(2, "not a number: #{text}")
      end
    end
  end

  defp parse({number, ""}), do: number
  defp parse(_other), do: :error

  defp format(value) when is_atom(value), do: Atom.to_string(value)
  defp format(value), do: inspect(value, binaries: :as_binaries)

  defp code(%Beamr.CallError{reason: :timeout}), do: 124
  defp code(%Beamr.CallError{}), do: 2
  defp code(%Beamr.Trap{}), do: 1
  defp code(%Beamr.ImportError{}), do: 1
  defp code(_error), do: 3

  defp stop(code, message) do
    Mix.shell().error(message)
    exit({:shutdown, code})
  end
end
