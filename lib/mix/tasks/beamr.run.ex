defmodule Mix.Tasks.Beamr.Run do
  @shortdoc "Runs a WebAssembly program, or a function of a module"

  @moduledoc """
  Runs a WebAssembly program, or a function of a module.

      mix beamr.run [OPTIONS] FILE [--] [ARGS]

  The file holds WebAssembly bytes or text.

  A module that imports from WASI preview 1 and exports `_start` is a program. It gets the
  arguments as they are, the standard streams, byte for byte, and of the rest nothing but what
  these options grant:

    * `--env NAME=VALUE` - an environment variable; may be given several times, as may the next
    * `--dir HOST[::GUEST][:ro]` - a directory, under the same path unless another is given;
      with `:ro` it can only be read

  Otherwise a function is called, and its results are printed, one a line. Arguments are numbers,
  or `nan`, `infinity` and `neg_infinity`; those that begin with `-` are taken as they are once
  the file is named.

  Options for both, before the file:

    * `--invoke NAME` - call this exported function; `_start` unless given, or the only function
      that is exported. What the module imports from WASI is granted to it too
    * `--timeout MILLISECONDS` - how long the start function may take, and then the call;
      endless unless given
    * `--max-memory BYTES`, `--max-table-elements N`, `--fuel N` - limits of the instance

  Exit codes: that of the program, if it came to its end (the lowest 8 bits of it). Otherwise 0
  when the function has returned; 1 when it trapped; 2 for wrong usage, arguments that do not fit,
  and functions that do not exist; 3 when the file cannot be read, compiled or linked, or asks for
  more than its limits, or a directory cannot be granted; 124 when the time was up.
  """

  use Mix.Task

  @requirements ["app.start"]

  @switches [
    invoke: :string,
    env: :keep,
    dir: :keep,
    timeout: :integer,
    max_memory: :integer,
    max_table_elements: :integer,
    fuel: :integer
  ]

  @wasi "wasi_snapshot_preview1"

  @impl true
  def run(argv) do
    case OptionParser.parse_head(argv, strict: @switches) do
      {opts, [path, "--" | args], []} -> run(path, args, opts)
      {opts, [path | args], []} -> run(path, args, opts)
      {_opts, [], []} -> stop(2, "usage: mix beamr.run [OPTIONS] FILE [--] [ARGS]")
      {_opts, _args, [{option, _value} | _]} -> stop(2, "wrong option, or wrong value: #{option}")
    end
  end

  defp run(path, args, opts) do
    {invoke, opts} = Keyword.pop(opts, :invoke)
    {granted, opts} = Keyword.split(opts, [:env, :dir])
    opts = Keyword.put_new(opts, :timeout, :infinity)

    with {:ok, module} <- Beamr.compile_file(path, fuel: opts[:fuel] != nil),
         {:ok, function} <- function(module, invoke),
         {:ok, results} <- call(module, function, args, opts, wasi(module, granted, path, args)) do
      Enum.each(results, &Mix.shell().info(format(&1)))
    else
      {:error, error} -> fail(error)
    end
  rescue
    error in ArgumentError -> stop(2, Exception.message(error))
  end

  @spec fail(Exception.t()) :: no_return()
  defp fail(%Beamr.Exit{code: code}), do: exit({:shutdown, Bitwise.band(code, 0xFF)})
  defp fail(error), do: stop(code(error), Exception.message(error))

  defp call(module, function, args, opts, nil) do
    args = Enum.map(args, &value/1)

    with {:ok, wasm} <- Beamr.instantiate(module, opts) do
      Beamr.call(wasm, function, args, timeout: opts[:timeout])
    end
  end

  defp call(module, function, args, opts, wasi) do
    args = if function == "_start", do: [], else: args
    opts = [{:wasi, wasi} | opts]

    with_bytes([:standard_io, :standard_error], fn -> call(module, function, args, opts, nil) end)
  end

  # The program's streams are bytes, which the devices take as they are once they are told so.
  # What this task itself says is text.
  defp with_bytes([], function), do: function.()

  defp with_bytes([device | devices], function) do
    encoding = with opts when is_list(opts) <- :io.getopts(device), do: opts[:encoding]
    _ = :io.setopts(device, encoding: :latin1)

    try do
      with_bytes(devices, function)
    after
      if is_atom(encoding), do: :io.setopts(device, encoding: encoding)
    end
  end

  defp wasi?(module) do
    Enum.any?(Beamr.Module.imports(module), fn {from, _name, _type} -> from == @wasi end)
  end

  defp wasi(module, granted, path, args) do
    if wasi?(module) do
      [
        args: [Path.basename(path) | args],
        env: for({:env, variable} <- granted, do: variable(variable)),
        dirs: for({:dir, dir} <- granted, do: directory(dir)),
        stdin: &read_line/0,
        stdout: &IO.binwrite/1,
        stderr: &IO.binwrite(:stderr, &1),
        tty: match?({:ok, _columns}, :io.columns())
      ]
    end
  end

  defp read_line do
    case IO.binread(:stdio, :line) do
      {:error, _reason} -> :eof
      line -> line
    end
  end

  defp variable(variable) do
    case String.split(variable, "=", parts: 2) do
      [name, value] when name != "" -> {name, value}
      _ -> stop(2, "wrong value: --env #{variable}")
    end
  end

  defp directory(dir) do
    {dir, access} =
      if String.ends_with?(dir, ":ro"),
        do: {String.replace_suffix(dir, ":ro", ""), :read},
        else: {dir, :write}

    case String.split(dir, "::", parts: 2) do
      [host, guest] -> {host, guest, access}
      [host] -> {host, host, access}
    end
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
