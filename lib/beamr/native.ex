defmodule Beamr.Native do
  @moduledoc false
  # The NIFs of native/beamr, stubs and specs and nothing else. Names are <rust file>_<verb>.
  #
  # An operation that can hold up a normal scheduler is there twice: the plain one answers
  # `:dirty` instead of waiting or working for long, and the one named `_dirty` does it all.

  @on_load :load

  @type module_ref :: reference()
  @type instance_ref :: reference()
  @type wasi_ref :: reference()
  @type reason :: term()
  @type import_index :: non_neg_integer()
  @type step ::
          {:ok, [term()]}
          | {:error, reason()}
          | :yield
          | {:import, import_index(), [term()]}
          | {:wait, reference()}
          | {:queue, reference()}
          | :dirty

  @doc false
  def load do
    # Code that is loaded again loads its library again, which needs the old code to be gone.
    :code.purge(__MODULE__)

    path =
      case System.get_env("BEAMR_NATIVE_PATH") do
        nil -> Path.join(:code.priv_dir(:beamr), "native/beamr")
        path -> Path.rootname(path, ".so")
      end

    :erlang.load_nif(String.to_charlist(path), Application.get_env(:beamr, :max_stack))
  end

  @spec module_compile(binary(), [atom()]) :: {:ok, module_ref()} | {:error, reason()}
  def module_compile(_source, _options), do: unloaded()

  @spec module_imports(module_ref()) :: [{String.t(), String.t(), Beamr.Module.extern_type()}]
  def module_imports(_module), do: unloaded()

  @spec module_exports(module_ref()) :: [{String.t(), Beamr.Module.extern_type()}]
  def module_exports(_module), do: unloaded()

  @spec module_name(module_ref()) :: String.t() | nil
  def module_name(_module), do: unloaded()

  @spec module_custom_sections(module_ref()) :: [{String.t(), non_neg_integer()}]
  def module_custom_sections(_module), do: unloaded()

  @typedoc """
  Timeout, maximal depth, memory, table elements and fuel, nil being no limit; and what is granted
  of WASI, with the indices of the imports that are WASI's.
  """
  @type instance_options ::
          {integer(), pos_integer(), non_neg_integer() | nil, non_neg_integer() | nil,
           non_neg_integer() | nil, {wasi_ref(), [import_index()]} | nil}

  @spec instance_start(module_ref(), instance_options()) :: {instance_ref(), step()} | :dirty
  def instance_start(_module, _options), do: unloaded()

  @spec instance_start_dirty(module_ref(), instance_options()) :: {instance_ref(), step()}
  def instance_start_dirty(_module, _options), do: unloaded()

  @spec instance_close(instance_ref()) :: :ok | :dirty
  def instance_close(_instance), do: unloaded()

  @spec instance_close_dirty(instance_ref()) :: :ok
  def instance_close_dirty(_instance), do: unloaded()

  @spec instance_interrupt(instance_ref()) :: :ok
  def instance_interrupt(_instance), do: unloaded()

  @spec instance_leave(instance_ref()) :: boolean()
  def instance_leave(_instance), do: unloaded()

  @spec call_start(instance_ref(), binary() | reference(), list(), integer(), boolean()) :: step()
  def call_start(_instance, _function, _args, _timeout, _unsigned), do: unloaded()

  @spec call_start_dirty(instance_ref(), binary() | reference(), list(), integer(), boolean()) ::
          step()
  def call_start_dirty(_instance, _function, _args, _timeout, _unsigned), do: unloaded()

  @spec call_resume(instance_ref(), :continue | :return | :raise, term()) :: step()
  def call_resume(_instance, _answer, _value), do: unloaded()

  @spec call_resume_dirty(instance_ref(), :continue | :return | :raise, term()) :: step()
  def call_resume_dirty(_instance, _answer, _value), do: unloaded()

  @spec export_perform(instance_ref(), atom(), String.t(), non_neg_integer() | nil, term()) ::
          :ok | {:ok, term()} | {:error, reason()} | {:queue, reference()} | :dirty
  def export_perform(_instance, _verb, _name, _index, _value), do: unloaded()

  @spec export_perform_dirty(instance_ref(), atom(), String.t(), non_neg_integer() | nil, term()) ::
          :ok | {:ok, term()} | {:error, reason()} | {:queue, reference()}
  def export_perform_dirty(_instance, _verb, _name, _index, _value), do: unloaded()

  @typep memory_name :: String.t() | nil

  @spec memory_size(instance_ref(), memory_name()) ::
          {:ok, non_neg_integer()} | {:error, reason()} | :dirty
  def memory_size(_instance, _memory), do: unloaded()

  @spec memory_size_dirty(instance_ref(), memory_name()) ::
          {:ok, non_neg_integer()} | {:error, reason()}
  def memory_size_dirty(_instance, _memory), do: unloaded()

  @spec memory_read(instance_ref(), memory_name(), non_neg_integer(), non_neg_integer()) ::
          {:ok, binary()} | {:error, reason()} | :dirty
  def memory_read(_instance, _memory, _offset, _length), do: unloaded()

  @spec memory_read_dirty(instance_ref(), memory_name(), non_neg_integer(), non_neg_integer()) ::
          {:ok, binary()} | {:error, reason()}
  def memory_read_dirty(_instance, _memory, _offset, _length), do: unloaded()

  @spec memory_read_string(instance_ref(), memory_name(), non_neg_integer(), pos_integer()) ::
          {:ok, binary()} | {:error, reason()} | :dirty
  def memory_read_string(_instance, _memory, _offset, _chunk), do: unloaded()

  @spec memory_read_string_dirty(
          instance_ref(),
          memory_name(),
          non_neg_integer(),
          pos_integer()
        ) :: {:ok, binary()} | {:error, reason()}
  def memory_read_string_dirty(_instance, _memory, _offset, _chunk), do: unloaded()

  @spec memory_write(instance_ref(), memory_name(), non_neg_integer(), iodata(), boolean()) ::
          :ok | {:error, reason()} | :badarg | :dirty
  def memory_write(_instance, _memory, _offset, _data, _terminated), do: unloaded()

  @spec memory_write_dirty(instance_ref(), memory_name(), non_neg_integer(), iodata(), boolean()) ::
          :ok | {:error, reason()} | :badarg
  def memory_write_dirty(_instance, _memory, _offset, _data, _terminated), do: unloaded()

  @spec wasi_new(tuple()) ::
          {:ok, wasi_ref()} | {:error, {String.t() | nil, File.posix() | String.t()}} | :dirty
  def wasi_new(_options), do: unloaded()

  @spec wasi_new_dirty(tuple()) ::
          {:ok, wasi_ref()} | {:error, {String.t() | nil, File.posix() | String.t()}}
  def wasi_new_dirty(_options), do: unloaded()

  @spec wasi_signature(String.t()) ::
          {[Beamr.Module.value_type()], [Beamr.Module.value_type()]} | nil
  def wasi_signature(_name), do: unloaded()

  @spec wasi_take(instance_ref(), 1 | 2) :: binary()
  def wasi_take(_instance, _stream), do: unloaded()

  @spec wasi_feed(instance_ref(), binary()) :: :ok
  def wasi_feed(_instance, _bytes), do: unloaded()

  @spec wasi_disarm(instance_ref()) :: boolean()
  def wasi_disarm(_instance), do: unloaded()

  @spec bench_noop() :: :ok
  def bench_noop, do: unloaded()

  @spec bench_binary(binary()) :: {:ok, binary()}
  def bench_binary(_bytes), do: unloaded()

  defp unloaded, do: :erlang.nif_error(:nif_not_loaded)
end
