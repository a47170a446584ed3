defmodule Beamr.WASI do
  @moduledoc ~S"""
  WASI preview 1: what programs in C, Rust, Zig and Go import to reach arguments, files, clocks and
  standard input and output (`wasi_snapshot_preview1`).

      iex> source = ~S|(module
      ...>   (import "wasi_snapshot_preview1" "fd_write"
      ...>     (func $fd_write (param i32 i32 i32 i32) (result i32)))
      ...>   (memory (export "memory") 1)
      ...>   (data (i32.const 0) "\10\00\00\00\06\00\00\00")
      ...>   (data (i32.const 16) "hello\0a")
      ...>   (func (export "_start")
      ...>     (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))|
      iex> {:ok, wasm} = Beamr.instantiate(source, wasi: [stdout: :buffer])
      iex> Beamr.call(wasm, "_start", [])
      {:ok, []}
      iex> Beamr.WASI.take_output(wasm, :stdout)
      "hello\n"

  A guest has what the option `wasi:` of `Beamr.instantiate/2` or `Beamr.Server` grants, and
  nothing else: no arguments, no environment, no files, no input. There are no sockets. `true`,
  `[]` and `%{}` grant nothing but the functions themselves, output, clocks and randomness.

  | option | what is granted | unless given |
  |---|---|---|
  | `:args` | the program's arguments, its own name first: a list of strings | `[]` |
  | `:env` | environment variables: a map, or a list of `{name, value}` | `%{}` |
  | `:dirs` | directories: a list of `{host_path, guest_path, :read \| :write}` | `[]` |
  | `:stdin` | iodata, or a function without arguments that answers the next iodata; `:eof`, nil or nothing (`""`) ends the input | nil: no input |
  | `:stdout` | where output goes: see below | the group leader |
  | `:stderr` | likewise | the device `:standard_error` |
  | `:clock` | a time at which all clocks stand still: a `DateTime`, or nanoseconds since 1970; `{time, step}` moves them by `step` nanoseconds with each reading | the system's clocks |
  | `:random` | a seed, from 0 to 2^64 - 1: the same seed gives the same bytes | the system's randomness |
  | `:tty` | whether the three streams say that they are a terminal, which makes C write each line as it comes | `false` |

  ## Output

    * `:default` - to where Elixir prints in the process that makes the call: its group leader, and
      `:standard_error` for `:stderr`. `ExUnit.CaptureIO` sees it. Text is written as text; bytes
      that are no UTF-8 are written as if they were Latin-1, so that none is lost;
    * a function of one argument - called with the bytes;
    * a pid or a registered name - is sent `{:beamr_stdout, instance, bytes}` or
      `{:beamr_stderr, instance, bytes}`;
    * `:buffer` or `{:buffer, bytes}` - kept until `take_output/2` takes it. A buffer holds 1048576
      bytes unless said otherwise; when it is full, the guest's writes fail as on a full disk
      (`ENOSPC`);
    * nil - nowhere.

  Functions run as imports do: in the process that makes the call, one after the other, while the
  guest waits for them. They may use the guest. What they raise ends the call with a
  `Beamr.ImportError`.

  ## Files

  The guest sees each directory under its guest path, and nothing outside of it: neither by `..`,
  nor by absolute paths, nor by symbolic links. `:read` refuses everything that changes it. A
  directory that cannot be opened makes instantiation fail with `Beamr.WASIError`.

  ## Waiting

  A guest that sleeps, or waits for a file, holds neither a scheduler nor a thread: its process
  waits for a message. It can be timed out, interrupted, closed and killed meanwhile. Sleeping
  takes its time also where the clocks are fixed. Files are opened, read and written by a few
  threads (32 at most, started when needed) that all guests of the node share, so a slow disk
  holds up nothing but those who use it. A function behind `:stdin` is waited for as any import,
  whatever time the guest itself allows for its input.

  ## Commands and reactors

  A command is a program with `_start`: call it, or have `run/2` do it all. A reactor is a library;
  its `_initialize` is called once by `Beamr.instantiate/2`, before anything else. `proc_exit` ends
  a call with a `Beamr.Exit`, which has the code; with code 0, a function without results has
  simply come to its end.

  ## Your own instead

  A function in `imports:` under `"wasi_snapshot_preview1"` takes the place of WASI's:

      Beamr.instantiate(module, wasi: [], imports: %{
        "wasi_snapshot_preview1" => %{"proc_raise" => fn _wasm, _signal -> 0 end}
      })
  """

  import Beamr.Guest, only: [is_guest: 1]

  alias Beamr.{Error, Guest, Native, WASIError}

  @module "wasi_snapshot_preview1"
  @buffer 1_048_576
  @max 0xFFFFFFFFFFFFFFFF

  @options [:args, :env, :dirs, :stdin, :stdout, :stderr, :clock, :random, :tty]

  @typedoc "Where a stream of output goes."
  @type output ::
          :default
          | (binary() -> term())
          | pid()
          | atom()
          | :buffer
          | {:buffer, pos_integer()}
          | nil

  @typedoc "An option of `wasi:`."
  @type option ::
          {:args, [String.t()]}
          | {:env, %{optional(String.t()) => String.t()} | [{String.t(), String.t()}]}
          | {:dirs, [{Path.t(), String.t(), :read | :write}]}
          | {:stdin, iodata() | (() -> iodata() | :eof | nil) | nil}
          | {:stdout, output()}
          | {:stderr, output()}
          | {:clock, time() | {time(), step :: non_neg_integer()} | nil}
          | {:random, non_neg_integer() | nil}
          | {:tty, boolean()}

  @typedoc "A time, in nanoseconds since 1970 where it is a number."
  @type time :: DateTime.t() | non_neg_integer()

  @doc ~S"""
  Runs a program to its end: makes an instance, calls its `_start` and closes it. Answers the exit
  code, 0 where `_start` just returns. What is kept in a buffer is gone with the instance.

  The options are those of `wasi:` and, beside them, those of `Beamr.instantiate/2`; `:timeout` is
  for all of it. Fails with whatever keeps the program from coming to its end: see
  `Beamr.instantiate/2` and `Beamr.call/4`.

      iex> source = ~S|(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      ...>   (memory (export "memory") 1)
      ...>   (func (export "_start") (call $exit (i32.const 3))))|
      iex> Beamr.WASI.run(source)
      {:ok, 3}
  """
  @spec run(Beamr.Module.t() | binary(), [option() | {atom(), term()}]) ::
          {:ok, exit_code :: non_neg_integer()} | {:error, Exception.t()}
  def run(module, opts \\ [])
      when (is_struct(module, Beamr.Module) or is_binary(module)) and is_list(opts) do
    {granted, opts} = Keyword.split(opts, @options)
    timeout = Keyword.get(opts, :timeout, 5_000)
    started = System.monotonic_time(:millisecond)

    case Beamr.instantiate(module, [{:wasi, granted} | opts]) do
      {:ok, instance} ->
        call_opts = [timeout: time_left(timeout, started)] ++ Keyword.take(opts, [:scheduler])
        result = Beamr.call(instance, "_start", [], call_opts)
        Beamr.close(instance)
        exit_code(result)

      error ->
        exit_code(error)
    end
  end

  defp time_left(:infinity, _started), do: :infinity

  defp time_left(timeout, started) do
    max(timeout - (System.monotonic_time(:millisecond) - started), 0)
  end

  defp exit_code({:ok, []}), do: {:ok, 0}
  defp exit_code({:error, %Beamr.Exit{code: code}}), do: {:ok, code}
  defp exit_code({:error, error}), do: {:error, error}

  @doc "As `run/2`, but raises the error."
  @spec run!(Beamr.Module.t() | binary(), [option() | {atom(), term()}]) :: non_neg_integer()
  def run!(module, opts \\ []), do: module |> run(opts) |> Error.unwrap!()

  @doc """
  Takes what a guest has written to a stream whose output goes to a `:buffer`, also while it runs.
  It is empty where nothing was written since the last time, and for any other output. Closing an
  instance leaves its buffers.

      iex> wasm = Beamr.instantiate!("(module)", wasi: [stderr: :buffer])
      iex> Beamr.WASI.take_output(wasm, :stderr)
      ""
  """
  @spec take_output(Beamr.guest(), :stdout | :stderr) :: binary()
  def take_output(guest, stream) when is_guest(guest) and stream in [:stdout, :stderr] do
    case Guest.place(guest, {__MODULE__, :take_output, [guest, stream]}) do
      {:instance, ref} ->
        Native.wasi_take(ref, descriptor(stream))

      {:remote, node, guest} ->
        Guest.remote(node, __MODULE__, :take_output, [guest, stream])
    end
  end

  defp descriptor(:stdout), do: 1
  defp descriptor(:stderr), do: 2

  @doc false
  # The options, checked and complete; nil where there are none.
  @spec options!(term()) :: map() | nil
  def options!(nil), do: nil
  def options!(false), do: nil
  def options!(true), do: options!([])
  def options!(opts) when is_map(opts), do: opts |> Map.to_list() |> options!()

  def options!(opts) do
    check!(Keyword.keyword?(opts), :wasi, opts, "true or a list of options")

    opts =
      opts
      |> Keyword.validate!(
        args: [],
        env: %{},
        dirs: [],
        stdin: nil,
        stdout: :default,
        stderr: :default,
        clock: nil,
        random: nil,
        tty: false
      )
      |> Map.new()

    check!(strings?(opts.args), :args, opts.args, "a list of strings without NULs")
    check!(env?(opts.env), :env, opts.env, "a map or a list of pairs of strings without NULs")

    check!(
      is_list(opts.dirs) and Enum.all?(opts.dirs, &dir?/1),
      :dirs,
      opts.dirs,
      "a list of {host_path, guest_path, :read | :write}"
    )

    check!(stdin?(opts.stdin), :stdin, opts.stdin, "iodata, a function without arguments or nil")

    for name <- [:stdout, :stderr] do
      wanted = ":default, a function of one argument, a process, :buffer, {:buffer, bytes} or nil"
      check!(output?(opts[name]), name, opts[name], wanted)
    end

    wanted = "a DateTime or nanoseconds since 1970, or a pair of that and a step in nanoseconds"
    check!(clock?(opts.clock), :clock, opts.clock, wanted)
    check!(opts.random == nil or number?(opts.random), :random, opts.random, "from 0 to 2^64 - 1")
    check!(is_boolean(opts.tty), :tty, opts.tty, "true or false")
    opts
  end

  defp strings?(list), do: is_list(list) and Enum.all?(list, &string?/1)

  defp string?(string) do
    is_binary(string) and String.valid?(string) and not String.contains?(string, <<0>>)
  end

  defp env?(env) when is_map(env) and not is_struct(env), do: env |> Map.to_list() |> env?()

  defp env?(env) do
    is_list(env) and Enum.all?(env, &(match?({_, _}, &1) and strings?(Tuple.to_list(&1))))
  end

  defp dir?({host, guest, access}) do
    string?(host) and string?(guest) and access in [:read, :write]
  end

  defp dir?(_other), do: false

  defp stdin?(stdin) when is_binary(stdin) or is_nil(stdin) or is_function(stdin, 0), do: true

  defp stdin?(stdin) when is_list(stdin) do
    _length = IO.iodata_length(stdin)
    true
  rescue
    ArgumentError -> false
  end

  defp stdin?(_other), do: false

  # Registered names are atoms, and so are nil, :default and :buffer.
  defp output?({:buffer, bytes}), do: number?(bytes) and bytes > 0
  defp output?(output) when is_boolean(output), do: false
  defp output?(output), do: is_function(output, 1) or is_pid(output) or is_atom(output)

  defp clock?(nil), do: true
  defp clock?({time, step}), do: time?(time) and number?(step)
  defp clock?(time), do: time?(time)

  defp time?(%DateTime{} = time), do: time |> nanoseconds() |> number?()
  defp time?(time), do: number?(time)

  defp number?(n), do: is_integer(n) and n in 0..@max

  defp nanoseconds(%DateTime{} = time), do: DateTime.to_unix(time, :nanosecond)
  defp nanoseconds(time), do: time

  defp check!(true, _name, _value, _wanted), do: :ok

  defp check!(false, name, value, wanted) do
    raise ArgumentError, "#{inspect(name)} must be #{wanted}, given: #{inspect(value)}"
  end

  @doc false
  # The type that WASI has for an import, or nil.
  @spec signature(String.t(), String.t()) :: Beamr.Module.extern_type() | nil
  def signature(@module, name) do
    with {params, results} <- Native.wasi_signature(name) do
      {:function, %{params: params, results: results}}
    end
  end

  def signature(_module, _name), do: nil

  @doc false
  # What the native side needs for an instance whose imports are linked to `functions`.
  @spec grant(map() | nil, [tuple()]) ::
          {:ok, {reference(), [non_neg_integer()]} | nil} | {:error, WASIError.t()}
  def grant(nil, _functions), do: {:ok, nil}

  def grant(opts, functions) do
    dirs = for {host, guest, access} <- opts.dirs, do: {host, guest, access == :write}

    options =
      {opts.args, Enum.to_list(opts.env), dirs, input(opts.stdin), sink(opts.stdout),
       sink(opts.stderr), clock(opts.clock), opts.random, opts.tty}

    granted =
      case Native.wasi_new(options) do
        :dirty -> Native.wasi_new_dirty(options)
        granted -> granted
      end

    case granted do
      {:ok, ref} ->
        {:ok,
         {ref, for({{_module, _name, :wasi}, index} <- Enum.with_index(functions), do: index)}}

      {:error, {path, reason}} when is_atom(reason) ->
        {:error, %WASIError{reason: reason, path: path}}

      {:error, {path, detail}} ->
        {:error, %WASIError{reason: :system, path: path, detail: detail}}
    end
  end

  defp input(stdin) when is_function(stdin), do: nil
  defp input(stdin), do: IO.iodata_to_binary(stdin || "")

  defp sink(nil), do: nil
  defp sink(:default), do: :text
  defp sink(:buffer), do: @buffer
  defp sink({:buffer, bytes}), do: bytes
  defp sink(_process_or_function), do: :binary

  defp clock(nil), do: nil
  defp clock({time, step}), do: {nanoseconds(time), step}
  defp clock(time), do: {nanoseconds(time), 0}

  @doc false
  # The imports that stand for the standard streams, behind the module's own. They are named, so
  # that new code of this module is used.
  @spec streams(map() | nil) :: [tuple()]
  def streams(nil), do: []

  def streams(%{stdin: stdin, stdout: stdout, stderr: stderr}) do
    [
      {@module, "fd_read", {:otherwise, {__MODULE__, :feed, [stdin]}, :stdin}},
      {@module, "fd_write", {:otherwise, {__MODULE__, :deliver, [stdout]}, :stdout}},
      {@module, "fd_write", {:otherwise, {__MODULE__, :deliver, [stderr]}, :stderr}}
    ]
  end

  @doc false
  @spec feed((() -> iodata() | :eof | nil), :stdin, Beamr.Instance.t(), []) :: :ok
  def feed(stdin, :stdin, wasm, []) do
    case stdin.() do
      end_of_input when end_of_input in [:eof, nil] -> Native.wasi_feed(wasm.ref, "")
      iodata -> Native.wasi_feed(wasm.ref, IO.iodata_to_binary(iodata))
    end
  end

  @doc false
  @spec deliver(output(), :stdout | :stderr, Beamr.Instance.t(), []) :: term()
  def deliver(to, stream, wasm, []) do
    bytes = Native.wasi_take(wasm.ref, descriptor(stream))

    case to do
      :default when stream == :stdout -> IO.write(text(bytes))
      :default -> IO.write(:standard_error, text(bytes))
      function when is_function(function) -> function.(bytes)
      process -> send(process, {message(stream), wasm, bytes})
    end
  end

  defp message(:stdout), do: :beamr_stdout
  defp message(:stderr), do: :beamr_stderr

  # Bytes that are no UTF-8 become the characters that they are in Latin-1.
  defp text(bytes) do
    case :unicode.characters_to_binary(bytes) do
      text when is_binary(text) -> text
      {_error, text, <<byte, rest::binary>>} -> [text, <<byte::utf8>>, text(rest)]
    end
  end
end
