defmodule Beamr do
  @external_resource "README.md"
  @moduledoc "README.md"
             |> File.read!()
             |> String.split("<!-- moduledoc -->")
             |> Enum.at(1)

  import Beamr.Guest, only: [is_guest: 1]

  alias Beamr.{Error, Guest, Instance, Native, Telemetry}

  @typedoc """
  Whatever addresses a guest: an instance, or the pid or name of a `Beamr.Server`, on this node
  or another.
  """
  @type guest :: Instance.t() | GenServer.server()

  @typedoc """
  A function of one instance, as `funcref` values come from its guest. Opaque, and good on the
  instance's node only: sent to another node, it is no function any more.
  """
  @type funcref :: reference()

  @typedoc """
  A WebAssembly value as a term.

  | WebAssembly | to the guest | from the guest |
  |---|---|---|
  | i32, i64 | integer, in the signed or the unsigned range of its width | signed integer |
  | f32, f64 | float, integer, `:nan`, `:infinity`, `:neg_infinity` | float, or one of the atoms |
  | v128 | 16-byte binary, the lowest lane first | the same |
  | funcref | nil or a function of the same instance | the same |
  | externref | any term | the same term |

  The BEAM has no NaNs and infinities, so they are always atoms. A finite number that rounds to
  an infinite f32 is refused.
  """
  @type value :: integer() | float() | :nan | :infinity | :neg_infinity | binary() | term()

  @call_timeout 5_000
  @max_depth 1_000

  # What an instance is made with unless something else is given.
  @instance_options %{
    timeout: @call_timeout,
    scheduler: :auto,
    max_depth: @max_depth,
    max_memory: nil,
    max_table_elements: nil,
    fuel: nil,
    wasi: nil
  }
  @instance_option_names [:imports, :hosts, :stubs | Map.keys(@instance_options)]

  @doc """
  Compiles WebAssembly bytes or WebAssembly text.

  Compilation takes a dirty scheduler, never a normal one. Fails with `Beamr.CompileError`.

  Options:

    * `:fuel` - `true` to meter the module's instances: each instruction uses fuel, and a guest
      that has none left traps. Metering makes code slower. `false` unless given.
    * `:deterministic` - `true` to make the result of every call depend on its inputs alone, on
      every machine: NaNs are canonical and relaxed SIMD instructions behave in one way. Meters
      as well, and the fuel used is the same everywhere. `false` unless given.
    * `:compact` - `true` for a module of which a node is to have very many instances: a hundred
      thousand, or a million. Otherwise each memory reserves 4 GiB of address space, so that code
      needs no bounds checks, and some 32,000 fit on a node; one with 64-bit addresses reserves
      32 GiB and grows no longer. A compact memory takes about as much as it is long, its bounds
      are checked by instructions (code that does little but access memory takes up to twice the
      time), and it moves when it grows. `false` unless given.
    * `:cache` - a folder that compiled modules are kept in: what was compiled before, by this
      node or another, is only loaded. nil for none; unless given, what
      `config :beamr, cache_dir: path` says.

  A cache is machine code that is run as it is: **whoever can write to the folder can run
  anything in this node**. Where it does not exist it is made, for its owner only (mode 0700).
  Entries belong to one source, options, version of Beamr and of its engine, and kind of
  processor; one that is damaged is compiled again and replaced. Any number of nodes may use one
  cache at the same time. Nothing is ever removed from it; entries may be deleted at any time. A
  cache that cannot be read or written makes compiling slower, and never fail.

      iex> {:ok, %Beamr.Module{}} = Beamr.compile("(module)")
      iex> {:error, error} = Beamr.compile("(module (func (export \\"f\\") i32.add))")
      iex> error.reason
      :invalid_wasm
  """
  @spec compile(binary(), keyword()) :: {:ok, Beamr.Module.t()} | {:error, Beamr.CompileError.t()}
  def compile(source, opts \\ []) when is_binary(source) and is_list(opts) do
    compile(source, opts, nil)
  end

  defp compile(source, opts, path) do
    {cache, opts} =
      Keyword.pop_lazy(opts, :cache, fn -> Application.get_env(:beamr, :cache_dir) end)

    cache = cache && cache_folder!(cache)
    native_opts = engine_options!(opts)

    if Telemetry.on?() do
      metadata = %{size: byte_size(source)}
      Telemetry.span(:compile, metadata, fn -> compile(source, native_opts, cache, path) end)
    else
      compile(source, native_opts, cache, path)
    end
  end

  defp compile(source, native_opts, cache, path) do
    case Native.module_compile(source, native_opts, cache) do
      {:ok, ref} -> {:ok, Beamr.Module.from_native(ref, :fuel in native_opts)}
      {:error, reason} -> {:error, Error.compile(reason, path)}
    end
  end

  defp cache_folder!(path) when is_binary(path) and path != "", do: Path.expand(path)
  defp cache_folder!([_ | _] = path), do: path |> List.to_string() |> Path.expand()

  defp cache_folder!(path) do
    raise ArgumentError, ":cache must be the path of a folder, or nil, given: #{inspect(path)}"
  end

  @doc false
  # The options of the engine that code is compiled for.
  @spec engine_options!(keyword()) :: [atom()]
  def engine_options!(opts) do
    opts = Keyword.validate!(opts, fuel: false, deterministic: false, compact: false)
    for {name, value} <- opts, do: check!(is_boolean(value), name, value, "true or false")
    metered = opts[:fuel] or opts[:deterministic]
    for {name, true} <- Keyword.put(opts, :fuel, metered), do: name
  end

  @doc "As `compile/2`, but raises the error."
  @spec compile!(binary(), keyword()) :: Beamr.Module.t()
  def compile!(source, opts \\ []), do: source |> compile(opts) |> Error.unwrap!()

  @doc """
  Compiles the file at `path`, whichever of the two formats it holds.

  Fails with `Beamr.CompileError`, with `reason: {:file, posix}` where the file cannot be read.

      iex> {:error, error} = Beamr.compile_file("no/such.wasm")
      iex> error.reason
      {:file, :enoent}
  """
  @spec compile_file(Path.t(), keyword()) ::
          {:ok, Beamr.Module.t()} | {:error, Beamr.CompileError.t()}
  def compile_file(path, opts \\ []) when is_list(opts) do
    case File.read(path) do
      {:ok, source} -> compile(source, opts, path)
      {:error, posix} -> {:error, %Beamr.CompileError{reason: {:file, posix}, path: path}}
    end
  end

  @doc "As `compile_file/2`, but raises the error."
  @spec compile_file!(Path.t(), keyword()) :: Beamr.Module.t()
  def compile_file!(path, opts \\ []), do: path |> compile_file(opts) |> Error.unwrap!()

  @doc """
  Makes an instance of a module, or of WebAssembly bytes or text, and runs its start function.

  Options:

    * `:imports` - what the module imports: a map of maps of functions, memories, globals and
      tables, see `t:Beamr.Instance.imports/0`. All that is missing or does not fit is listed in one
      `Beamr.LinkError`; what the module does not import is ignored.
    * `:wasi` - what the guest is granted of WASI preview 1: a list of options, see `Beamr.WASI`,
      or `true` for nothing but the functions themselves. Imports given in `:imports` come first.
    * `:hosts` - a list of hosts that provide what `:imports` does not have: see `Beamr.Host`.
    * `:stubs` - `:zero` or `:trap` for what nobody provides: functions that answer zeros, or
      that end the call with the import's name.
    * `:timeout` - milliseconds that the start function may take, or `:infinity`;
      #{@call_timeout} unless given.
    * `:scheduler` - where the start function runs: see `t:Beamr.Instance.scheduler/0`.
    * `:max_depth` - how deep calls from host to guest may be nested in one another on this
      instance; #{@max_depth} unless given. A slice of a nested call costs time in proportion to
      its depth.
    * `:max_memory` - bytes that all memories of the instance may have together, imported ones
      included; no limit but the module's own unless given.
    * `:max_table_elements` - elements that all its tables may have together; likewise.
    * `:fuel` - how much fuel it starts with; as good as endless unless given. The module must
      have been compiled with `fuel: true`; source given here is.

  Fails with `Beamr.CompileError`, `Beamr.LinkError`, `Beamr.LimitError` for a module that asks
  for more than its limits from the start, `Beamr.WASIError`, or whatever ended the start
  function: see `call/4`.

  The stack of a guest is limited for the whole node: 524288 bytes, or what
  `config :beamr, max_stack: bytes` said when Beamr was loaded. A guest that needs more traps
  with `:stack_overflow`.

      iex> source = ~s|(module (import "env" "double" (func $double (param i32) (result i32)))
      ...>                     (func (export "f") (result i32) (call $double (i32.const 21))))|
      iex> {:ok, wasm} = Beamr.instantiate(source, imports: %{"env" => %{"double" => fn _wasm, n -> n * 2 end}})
      iex> Beamr.call(wasm, "f", [])
      {:ok, [42]}
  """
  @spec instantiate(Beamr.Module.t() | binary(), keyword()) ::
          {:ok, Instance.t()} | {:error, Exception.t()}
  def instantiate(module, opts \\ [])

  def instantiate(%Beamr.Module{} = module, opts) when is_list(opts) do
    {imports, options} = instance_options(opts)
    check_fuel!(module, options.fuel)
    Instance.new(module, imports, options)
  end

  def instantiate(source, opts) when is_binary(source) and is_list(opts) do
    with {:ok, module} <- compile(source, fuel: Keyword.get(opts, :fuel) != nil) do
      instantiate(module, opts)
    end
  end

  @doc false
  @spec check_fuel!(Beamr.Module.t(), non_neg_integer() | nil) :: :ok
  def check_fuel!(module, fuel) do
    if fuel != nil and not Beamr.Module.metered?(module) do
      raise ArgumentError, "fuel was given to a module that was not compiled with fuel: true"
    end

    :ok
  end

  @doc false
  # The imports and the other options of an instance, checked.
  @spec instance_options(keyword()) :: {map(), map()}
  def instance_options([]), do: {%{}, @instance_options}

  def instance_options(opts) do
    opts = Keyword.validate!(opts, @instance_option_names)
    imports = Keyword.get(opts, :imports, %{})
    is_imports = is_map(imports) and not is_struct(imports)
    check!(is_imports, :imports, imports, "a map of maps of functions")
    Enum.reduce(opts, {imports, @instance_options}, &instance_option/2)
  end

  defp instance_option({:imports, _imports}, checked), do: checked

  defp instance_option({:hosts, hosts}, {imports, options}) do
    Beamr.Host.check!(hosts)
    {if(hosts == [], do: imports, else: Map.put(imports, :hosts, hosts)), options}
  end

  defp instance_option({:stubs, stubs}, {imports, options}) do
    Beamr.Host.check_stubs!(stubs)
    {if(stubs == nil, do: imports, else: Map.put(imports, :stubs, stubs)), options}
  end

  defp instance_option({:wasi, wasi}, {imports, options}) do
    {imports, %{options | wasi: Beamr.WASI.options!(wasi)}}
  end

  defp instance_option({name, value}, {imports, options}) do
    case name do
      :timeout -> check_timeout!(value)
      :scheduler -> check_scheduler!(value)
      :max_depth -> check!(size?(value, 1), name, value, "a positive integer")
      _limit -> check_limit!(name, value)
    end

    {imports, Map.put(options, name, value)}
  end

  defp check_limit!(name, value) do
    check!(value == nil or size?(value, 0), name, value, "an integer from 0 to 2^64 - 1")
  end

  @doc "As `instantiate/2`, but raises the error."
  @spec instantiate!(Beamr.Module.t() | binary(), keyword()) :: Instance.t()
  def instantiate!(module, opts \\ []), do: module |> instantiate(opts) |> Error.unwrap!()

  @doc """
  Calls an exported function, or a `t:funcref/0`, with a list of arguments; answers a list of
  its results. How values are converted: `t:value/0`.

  The call runs in the calling process, and so do the imports that the guest calls. A long call
  holds no scheduler, and ends when its process dies.

  Options:

    * `:timeout` - milliseconds that the call may take, imports and waiting for a busy instance
      included, or `:infinity`; #{@call_timeout} unless given. Past it the guest is ended at its
      next safe point; an import's Elixir code is not, but its guest does not go on after it. A
      nested call has no more time than the call it is nested in.
    * `:scheduler` - where the guest runs: see `t:Beamr.Instance.scheduler/0`.
    * `:unsigned` - `true` to have i32 and i64 results unsigned, as pointers are: a pointer above
      2 GiB is a negative i32 otherwise. (The arguments of imports are always signed.)

  Fails with

    * `Beamr.CallError`: the call cannot be made, or was ended from outside;
    * `Beamr.Trap`: the guest trapped;
    * `Beamr.ImportError`: an import failed;
    * `Beamr.Exit`: a WASI guest exited. With code 0 this is `{:ok, []}` where the function has
      no results.

      iex> wasm = Beamr.instantiate!(~s|(module (func (export "div") (param i32 i32) (result i32)
      ...>   (i32.div_s (local.get 0) (local.get 1))))|)
      iex> Beamr.call(wasm, "div", [-7, 2])
      {:ok, [-3]}
      iex> {:error, trap} = Beamr.call(wasm, "div", [1, 0])
      iex> trap.reason
      :integer_divide_by_zero
      iex> {:error, error} = Beamr.call(wasm, "div", [1, :two])
      iex> Exception.message(error)
      ~s|argument 2 of "div" must be an i32 (an integer from -2147483648 to 4294967295), given: :two|
  """
  @spec call(guest(), String.t() | funcref(), [value()], keyword()) ::
          {:ok, [value()]} | {:error, Exception.t()}
  def call(guest, function, args, opts \\ [])

  def call(%Instance{} = guest, function, args, [])
      when (is_binary(function) or is_reference(function)) and length(args) >= 0 do
    Instance.call(guest, function, args, @call_timeout, :auto, false)
  end

  def call(guest, function, args, opts)
      when is_guest(guest) and (is_binary(function) or is_reference(function)) and
             length(args) >= 0 and is_list(opts) do
    opts = Keyword.validate!(opts, timeout: @call_timeout, scheduler: :auto, unsigned: false)
    check_timeout!(opts[:timeout])
    check_scheduler!(opts[:scheduler])
    check!(is_boolean(opts[:unsigned]), :unsigned, opts[:unsigned], "true or false")
    Guest.call(guest, function, args, opts[:timeout], opts[:scheduler], opts[:unsigned])
  end

  @doc """
  As `call/4`, but raises the error. What an import raised, threw or exited with comes out of it
  as it was.
  """
  @spec call!(guest(), String.t() | funcref(), [value()], keyword()) :: [value()]
  def call!(guest, function, args, opts \\ []) do
    guest |> call(function, args, opts) |> Error.unwrap!()
  end

  @doc """
  Frees an instance at once, memory and all. Whatever uses it afterwards gets
  `reason: :closed`, and so does a call that is in flight. Closing it again is `:ok` too.

      iex> wasm = Beamr.instantiate!("(module)")
      iex> Beamr.close(wasm)
      :ok
      iex> {:error, error} = Beamr.IO.size(wasm)
      iex> error.reason
      :closed
  """
  @spec close(Instance.t()) :: :ok
  def close(%Instance{ref: ref}) do
    with :dirty <- Native.instance_close(ref), do: Native.instance_close_dirty(ref)
    Beamr.Allocator.Regions.guest_gone(ref)
  end

  @doc """
  Ends the call in flight on the instance, whichever process made it: that process gets
  `{:error, %Beamr.CallError{reason: :interrupted}}`. The instance stays usable. A call in an
  import is ended when the import returns. Without a call in flight it does nothing.

      iex> wasm = Beamr.instantiate!(~s|(module (func (export "loop") (loop (br 0))))|)
      iex> looping = Task.async(fn -> Beamr.call(wasm, "loop", [], timeout: :infinity) end)
      iex> {:error, error} =
      ...>   Stream.repeatedly(fn -> Beamr.interrupt(wasm); Task.yield(looping, 1) end)
      ...>   |> Enum.find_value(fn yielded -> with {:ok, result} <- yielded, do: result end)
      iex> error.reason
      :interrupted
  """
  @spec interrupt(guest()) :: :ok
  def interrupt(guest) when is_guest(guest) do
    case Guest.place(guest, {__MODULE__, :interrupt, [guest]}) do
      {:instance, ref} -> Native.instance_interrupt(ref)
      {:remote, node, guest} -> Guest.remote(node, __MODULE__, :interrupt, [guest])
    end
  end

  @doc """
  Starts a `Beamr.Server`: a process that owns an instance. Options: `Beamr.Server.start_link/1`.

      iex> {:ok, guest} = Beamr.start_link(module: ~s|(module (func (export "one") (result i32) (i32.const 1)))|)
      iex> Beamr.call(guest, "one", [])
      {:ok, [1]}
  """
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(opts), do: Beamr.Server.start_link(opts)

  defp check_scheduler!(scheduler) do
    check!(
      scheduler in [:auto, :normal, :dirty],
      :scheduler,
      scheduler,
      ":auto, :normal or :dirty"
    )
  end

  defp check_timeout!(timeout) do
    valid = timeout == :infinity or (is_integer(timeout) and timeout in 0..0xFFFFFFFF)
    check!(valid, :timeout, timeout, "milliseconds from 0 to 4294967295, or :infinity")
  end

  defp size?(n, least), do: is_integer(n) and n in least..0xFFFFFFFFFFFFFFFF

  defp check!(true, _name, _value, _wanted), do: :ok

  defp check!(false, name, value, wanted) do
    raise ArgumentError, "#{inspect(name)} must be #{wanted}, given: #{inspect(value)}"
  end
end
